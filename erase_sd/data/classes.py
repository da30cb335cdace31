"""Labelled images as caption pairs: a class becomes captions by templates, here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from .coco import named_classes
from .concept import Concept, with_article
from .dataset import CaptionedImage, Dataset, digest_of
from .images import ImageSource
from .pair import Split

TEMPLATES = (
    "a {}", "the {}", "a photo of a {}", "a picture of a {}", "there is a {} in the picture",
)  # fmt: skip
"""Captions of a class, with {} for its name: the prompts of the CLIPErase paper."""


class LabelledImage(NamedTuple):
    """An image of a class."""

    name: str
    label: str
    source: ImageSource
    split: Split | None = None
    """Its split in the dataset itself, if it has one."""


def prompt_of(template: str, name: str) -> str:
    """The template filled with the name; an "a" before it becomes "an" where the name needs it."""
    article, _, _ = with_article(name).partition(" ")
    template = re.sub(r"\b([aA]) \{\}", rf"\g<1>{article[1:]} {{}}", template)
    return template.replace("{}", name)


def class_name(text: str) -> str:
    """A class as words: `sweet_pepper` is "sweet pepper"."""
    return " ".join(text.replace("_", " ").split())


def labelled_dataset(
    folder: Path, source: Path, title: str, images: Iterable[LabelledImage]
) -> Dataset:
    """The images, each with the captions of its class, one for each of TEMPLATES."""
    captions: dict[str, tuple[str, ...]] = {}
    items, files = [], {}
    for image in images:
        if image.label not in captions:
            captions[image.label] = tuple(prompt_of(t, image.label) for t in TEMPLATES)
        items.append(
            CaptionedImage(image.name, captions[image.label], image.split, label=image.label)
        )
        files[image.name] = image.source
    return Dataset(folder, source, title, digest_of(items), tuple(items), files)


def matching_classes(concept: Concept, classes: Sequence[str]) -> set[str]:
    """Classes that the concept names: "apple" by its word, "couch" for the concept sofa."""
    by_synonym = set(named_classes(concept.name, classes))
    return by_synonym | {name for name in classes if concept.in_text(name)}


def nearest_classes(concept: Concept, classes: Sequence[str]) -> str:
    """The classes that the concept may have meant, synonyms first."""
    near = [*named_classes(concept.name, classes)]
    near += get_close_matches(concept.name, classes, n=5, cutoff=0.0)
    return ", ".join(dict.fromkeys(near))
