"""The images of an evaluation, each in the forget or the retain set, with captions, a class, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from ...data.coco import COCO, named_classes
from ...data.concept import Concept
from ...data.pair import CaptionPair, ConceptSet
from ...errors import DataError
from ...models.clip import Clip

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


def matching_classes(concept: Concept, classes: Sequence[str]) -> set[str]:
    """Classes that the concept names: "apple" by its word, "couch" for the concept sofa."""
    by_synonym = set(named_classes(concept.name, classes))
    return by_synonym | {name for name in classes if concept.in_text(name)}


def labelled_gallery(
    kind: str,
    folder: Path,
    digest: str,
    labelled: Sequence[tuple[str, OpenImage]],
    concepts: Sequence[Concept],
) -> Gallery:
    """A gallery of (class, image). Raises DataError if a concept names no class, or they name all."""
    classes = sorted({label for label, _ in labelled})
    forget: set[str] = set()
    for concept in concepts:
        named = matching_classes(concept, classes)
        if not named:
            near = ", ".join(get_close_matches(concept.name, classes, n=5, cutoff=0.0))
            raise DataError(
                f"has no class {concept.name}; nearest: {near}", field="images", value=folder
            )
        forget |= named
    if forget == set(classes):
        raise DataError(
            "the concepts name every class; needs one to retain", field="images", value=folder
        )
    images = tuple(
        GalleryImage(open_it, "forget" if label in forget else "retain", label=label)
        for label, open_it in labelled
    )
    return Gallery(
        kind=kind, folder=folder, digest=digest, images=images, forget_classes=frozenset(forget)
    )


def captioned_images(
    captioned: Iterable[tuple[tuple[CaptionPair, ...], OpenImage]],
) -> tuple[GalleryImage, ...]:
    """Gallery images of (caption pairs, image).

    An image whose captions name exactly one COCO class is of that class; whether it shows others
    too is unknown.
    """
    images = []
    for pairs, open_it in captioned:
        named = named_classes(" | ".join(pair.caption for pair in pairs), COCO)
        label = named[0] if len(named) == 1 else None
        images.append(GalleryImage(open_it, pairs[0].set, pairs, label))
    return tuple(images)


def coco_classes(concepts: Iterable[Concept]) -> frozenset[str]:
    """COCO classes that the concepts name."""
    return frozenset(name for concept in concepts for name in matching_classes(concept, COCO))


def balanced(forget: Sequence[ImageT], retain: Sequence[ImageT]) -> list[ImageT]:
    """The first images of both sets, at most MAX_IMAGES in all, half of them from the forget set
    unless a set has fewer."""
    chosen = list(forget[: max(MAX_IMAGES // 2, MAX_IMAGES - len(retain))])
    return chosen + list(retain[: MAX_IMAGES - len(chosen)])
