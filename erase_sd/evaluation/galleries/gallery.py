"""The images of an evaluation, each in the forget or the retain set, with captions, a class, or both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from ...data.classes import matching_classes, nearest_classes
from ...data.coco import COCO, HYPERNYMS, SYNONYMS, named_classes
from ...data.concept import Concept
from ...data.dataset import Dataset
from ...data.images import hash_image, open_image
from ...data.pair import CaptionPair, ConceptSet
from ...errors import DataError
from ...files import key_of
from ...models.clip import Clip
from ...models.features import readable, report_unreadable

MAX_IMAGES = 1000  # of captioned data, the size of Flickr30K's customary test split
ImageT = TypeVar("ImageT")
OpenImage = Callable[[], Image.Image]


@dataclass(frozen=True)
class GalleryImage:
    """One image, opened on demand."""

    open: OpenImage
    set: ConceptSet
    pairs: tuple[CaptionPair, ...] = ()
    """Its captions, empty for images that only have a class."""
    label: str | None = None
    """Its class, None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All images of an evaluation, and where they come from."""

    kind: str
    """What the images are, in words."""
    folder: Path
    digest: str
    """Hash of the images or captions."""
    images: tuple[GalleryImage, ...]
    forget_classes: frozenset[str]
    """Classes that the concepts name."""
    details: dict[str, Any] = field(default_factory=dict)
    """More about this kind of gallery, as plain JSON."""
    features: Callable[[Clip], Tensor] | None = None
    """Cached image features of a CLIP, (images, d); None if there is no cache."""

    @property
    def classes(self) -> list[str]:
        """Classes of the images, sorted by name."""
        return sorted({image.label for image in self.images if image.label is not None})


def labelled_gallery(data: Dataset, concepts: Sequence[Concept]) -> Gallery:
    """The readable images of labelled data. Raises DataError if fewer than two classes have any, if a
    concept names no class, or if they name all."""
    names = readable(data, (item.image for item in data.items))
    report_unreadable(data)
    labels = {item.image: item.label or "" for item in data.items}
    classes = sorted({labels[name] for name in names})
    if len(classes) < 2:
        raise DataError(f"{data.folder}: needs readable images of at least two classes")
    forget: set[str] = set()
    for concept in concepts:
        named = matching_classes(concept, classes)
        if not named:
            raise DataError(
                f"has no class {concept.name}; nearest: {nearest_classes(concept, classes)}",
                field="images", value=data.folder,
            )  # fmt: skip
        forget |= named
    if forget == set(classes):
        raise DataError(
            "the concepts name every class; needs one to retain", field="images", value=data.folder
        )
    return Gallery(
        kind=data.format,
        folder=data.folder,
        digest=key_of([data.digest, [[name, hash_image(data.path_of(name))] for name in names]]),
        images=tuple(
            GalleryImage(
                functools.partial(open_image, data.path_of(name)),
                "forget" if labels[name] in forget else "retain",
                label=labels[name],
            )
            for name in names
        ),
        forget_classes=frozenset(forget),
    )


def captioned_images(
    captioned: Iterable[tuple[tuple[CaptionPair, ...], OpenImage]], concepts: Sequence[Concept]
) -> tuple[GalleryImage, ...]:
    """Gallery images of (caption pairs, image).

    An image whose captions name exactly one of `caption_classes` is of that class; whether it shows
    others too is unknown.
    """
    classes, images = caption_classes(concepts), []
    for pairs, open_it in captioned:
        named = named_classes(" | ".join(pair.caption for pair in pairs), classes)
        label = named[0] if len(named) == 1 else None
        images.append(GalleryImage(open_it, pairs[0].set, pairs, label))
    return tuple(images)


def caption_classes(concepts: Iterable[Concept]) -> tuple[str, ...]:
    """COCO's classes; for a concept that is a kind of person, the kinds of people instead of person."""
    names = {concept.name.lower() for concept in concepts}
    kinds = {name: SYNONYMS[name] for name in HYPERNYMS if not names.isdisjoint(SYNONYMS[name])}
    return tuple(word for name in COCO for word in kinds.get(name, (name,)))


def coco_classes(concepts: Sequence[Concept]) -> frozenset[str]:
    """The `caption_classes` that the concepts name."""
    classes = caption_classes(concepts)
    return frozenset(name for concept in concepts for name in matching_classes(concept, classes))


def balanced(forget: Sequence[ImageT], retain: Sequence[ImageT]) -> list[ImageT]:
    """The first images of both sets, at most MAX_IMAGES in all, half of them from the forget set
    unless a set has fewer."""
    chosen = list(forget[: max(MAX_IMAGES // 2, MAX_IMAGES - len(retain))])
    return chosen + list(retain[: MAX_IMAGES - len(chosen)])
