"""COCO's classes in everyday words, and which of a detector's classes a caption names."""

from __future__ import annotations

from collections.abc import Sequence

from .concept import Concept

# The 80 classes of COCO, in the order that detectors give them.
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
    "donut": ("doughnut",),
    "refrigerator": ("fridge",),
    "hair drier": ("hair dryer",),
}

# Well-known phrases in which a class's word is no such thing. Brands and makers ("apple laptop")
# are not among them: whether they go with the fruit is for the user to say.
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


def named_classes(text: str, names: Sequence[str]) -> list[str]:
    """The classes among `names` that `text` mentions, each once, in the detector's order."""
    words = [Concept(n, SYNONYMS.get(n, ()), COMPOUNDS.get(n, ())) for n in names]
    spans = [(span, word.name) for word in words for span in word.spans(text)]
    mentioned = {
        name
        for (start, end), name in spans
        if not any(s <= start and end <= e and (e - s) > (end - start) for (s, e), _ in spans)
    }
    return [name for name in names if name in mentioned]
