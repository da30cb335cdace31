"""The classes of COCO, everyday words for them, and which classes a caption names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .concept import Concept

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes, in the order of detectors trained on COCO."""

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
    "donut": ("doughnut",),
    "refrigerator": ("fridge",),
    "hair drier": ("hair dryer",),
}
"""Everyday words for the classes. The longest phrase wins: an "apple laptop" is a laptop, not an
apple, and a "hot dog" is not a dog."""

HYPERNYMS = ("person",)
"""Classes whose words are kinds of it rather than other names for it."""

COMPOUNDS: dict[str, tuple[str, ...]] = {
    "car": ("cable car", "subway car", "train car", "trolley car", "car seat", "car wash"),
    "bus": ("bus stop", "bus station", "bus shelter", "bus terminal"),
    "train": ("train station", "train stop", "train platform", "train track"),
    "bird": ("bird's eye", "birds eye"),
    "dog": ("hot dog", "corn dog", "chili dog"),
    "horse": ("pommel horse", "vaulting horse", "rocking horse", "saw horse", "sea horse"),
    "sheep": ("sheep dog",),
    "elephant": ("elephant seal",),
    "bear": ("teddy bear", "care bear", "gummy bear"),
    "cup": ("world cup", "suction cup"),
    "bowl": ("super bowl",),
    "chair": ("chair lift",),
    "bed": ("flower bed", "truck bed", "river bed", "creek bed", "stream bed"),
    "mouse": ("mickey mouse", "minnie mouse"),
}
"""Well-known phrases in which a class's word means something else. Brands ("apple laptop") are not
listed: whether they are erased with the fruit is the user's choice."""

LOOK_ALIKES = (
    ("apple", "orange"),
    ("bicycle", "motorcycle"),
    ("chair", "couch"),
    ("elephant", "cow"),
    ("horse", "cow"),
    ("dog", "cat"),
    ("bus", "truck"),
    ("tv", "laptop"),
)
"""Pairs of classes that people and detectors confuse."""


def named_classes(text: str, names: Sequence[str]) -> list[str]:
    """The classes among `names` that `text` mentions, each once, in the order of `names`.

    A class without a word, such as the "-" of some detectors and folders, is never mentioned.
    """
    words = [name for name in names if re.search(r"\w", name)]
    classes = [Concept(n, SYNONYMS.get(n, ()), COMPOUNDS.get(n, ())) for n in words]
    mentions = [(span, concept.name) for concept in classes for span in concept.spans(text)]
    mentioned = {
        name
        for (start, end), name in mentions
        if not any(s <= start and end <= e and (e - s) > (end - start) for (s, e), _ in mentions)
    }
    return [name for name in names if name in mentioned]
