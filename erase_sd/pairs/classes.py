"""Which of a detector's classes a caption names."""

from __future__ import annotations

from collections.abc import Sequence

from .concepts import Concept

# What people call COCO's classes. A longer phrase wins over a shorter one inside it, so an "apple
# laptop" is a laptop and no apple, and a "hot dog" no dog.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": ("man", "woman", "boy", "girl", "guy", "lady", "kid", "child", "human"),
    "bicycle": ("bike", "cycle"),
    "motorcycle": ("motorbike", "scooter", "moped"),
    "car": ("automobile", "taxi"),
    "airplane": ("plane", "aeroplane"),
    "dog": ("puppy", "hound"),
    "cat": ("kitten",),
    "cow": ("bull", "cattle"),
    "couch": ("sofa", "settee"),
    "laptop": ("apple laptop", "notebook computer", "macbook"),
    "cup": ("mug",),
    "umbrella": ("parasol",),
    "tv": ("television",),
    "cell phone": ("mobile phone", "smartphone"),
    "potted plant": ("houseplant",),
}


def named_classes(text: str, names: Sequence[str]) -> list[str]:
    """The classes among `names` that `text` mentions, each once, in the detector's order."""
    spans = [
        (span, name) for name in names for span in Concept(name, SYNONYMS.get(name, ())).spans(text)
    ]
    mentioned = {
        name
        for (start, end), name in spans
        if not any(s <= start and end <= e and (e - s) > (end - start) for (s, e), _ in spans)
    }
    return [name for name in names if name in mentioned]
