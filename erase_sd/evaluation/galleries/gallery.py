"""The pictures of an evaluation: each on a side, with its captions, its class, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from PIL import Image
from torch import Tensor

from ...data.coco import COCO, named_classes
from ...data.concept import Concept
from ...errors import DataError
from ...models.clip import Clip

Side = Literal["forget", "retain"]
MOST = 1000  # images of captioned data, as in Flickr30K's customary test
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One image, opened when it is needed; its captions and its class, where it has them."""

    open: Callable[[], Image.Image]
    side: Side
    captions: tuple[str, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class Gallery:
    """All pictures of an evaluation. `about` says what they are, in plain JSON; `forgotten` are the
    classes that the concepts name."""

    about: dict[str, Any]
    pictures: tuple[Picture, ...]
    forgotten: frozenset[str]
    cached: Callable[[Clip], Tensor] | None = None
    """A CLIP's image features, (pictures, d), by way of the cache; None: there is none."""

    @property
    def classes(self) -> list[str]:
        """The classes that occur, by name."""
        return sorted({p.label for p in self.pictures if p.label is not None})


def classes_of(concept: Concept, classes: Sequence[str]) -> set[str]:
    """The classes that the concept names: "apple" by its word, "couch" where the concept is a sofa."""
    known = set(named_classes(concept.name, classes))
    return known | {name for name in classes if concept.in_text(name)}


def of_classes(
    about: dict[str, Any],
    labelled: Iterable[tuple[str, Callable[[], Image.Image]]],
    concepts: Sequence[Concept],
) -> Gallery:
    """A gallery of (class, image). Raises DataError where a concept is none of the classes, or all."""
    labelled = list(labelled)
    classes = sorted({label for label, _ in labelled})
    forgotten: set[str] = set()
    for concept in concepts:
        found = classes_of(concept, classes)
        if not found:
            near = get_close_matches(concept.name, classes, n=5, cutoff=0.0)
            raise DataError(
                f"--images {about['folder']}: no class {concept.name} there; near: {', '.join(near)}"
            )
        forgotten |= found
    if forgotten == set(classes):
        raise DataError(f"--images {about['folder']}: no class is left to retain")
    pictures = tuple(
        Picture(opened, "forget" if label in forgotten else "retain", label=label)
        for label, opened in labelled
    )
    return Gallery(about, pictures, frozenset(forgotten))


def of_captions(
    about: dict[str, Any],
    captioned: Sequence[tuple[tuple[str, ...], Callable[[], Image.Image]]],
    concepts: Sequence[Concept],
    cached: Callable[[Clip], Tensor] | None = None,
) -> Gallery:
    """A gallery of (captions, image). An image whose captions name one of COCO's classes, and no
    other, is of that class; whatever else it may show, nobody has said."""
    pictures = []
    for captions, opened in captioned:
        named = named_classes(" | ".join(captions), COCO)
        label = named[0] if len(named) == 1 else None
        pictures.append(Picture(opened, side_of(captions, concepts), captions, label))
    forgotten = {name for concept in concepts for name in classes_of(concept, COCO)}
    return Gallery(about, tuple(pictures), frozenset(forgotten), cached)


def side_of(captions: Iterable[str], concepts: Sequence[Concept]) -> Side:
    """Forget, where any caption mentions a concept."""
    hit = any(concept.in_text(caption) for caption in captions for concept in concepts)
    return "forget" if hit else "retain"


def choose(forget: Sequence[T], retain: Sequence[T]) -> list[T]:
    """At most MOST, from the front of each; half of them to forget, unless a side has fewer."""
    first = list(forget[: max(MOST // 2, MOST - len(retain))])
    return first + list(retain[: MOST - len(first)])
