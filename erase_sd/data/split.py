"""Forget and retain, each parted into train, validation and held-out, by image."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import DataError
from .concept import Concept
from .flickr30k import PARTS as PARTS
from .flickr30k import Captioned, Dataset
from .flickr30k import Part as Part

LEAST = 10  # images that a part of the dataset's own split needs, to be a measure of anything


def parts_of(items: Sequence[Captioned]) -> dict[Part, tuple[Captioned, ...]]:
    """The dataset's own parts, where each has at least LEAST of the images; ours otherwise.

    Ours: 70 / 10 / 20 % of the images, in the order of a hash of the name; each at least one. The
    paper's 70 / 30, of whose 30 a third chooses and two thirds report. With fewer than three images
    a part stays empty. It takes no seed: runs that erase the same concepts hold out the same images,
    so the same prompts are held out from all of them.
    """
    own = {part: tuple(item for item in items if item.part == part) for part in PARTS}
    if min(len(inside) for inside in own.values()) >= LEAST:
        return own
    order = ranked(items)
    validation, held_out = max(1, round(len(items) * 0.1)), max(1, round(len(items) * 0.2))
    train = max(len(items) - validation - held_out, 0)
    bounds = (0, train, train + validation, len(items))
    return {part: tuple(order[i:j]) for part, i, j in zip(PARTS, bounds, bounds[1:], strict=False)}


def ranked(items: Iterable[Captioned], seed: int = 0) -> list[Captioned]:
    """The images in the order of a hash of seed and name."""
    return sorted(items, key=lambda i: hashlib.sha256(f"{seed}/{i.image}".encode()).digest())


@dataclass(frozen=True)
class Split:
    """Images that mention a concept in any caption, and those that do in none."""

    forget: dict[Part, tuple[Captioned, ...]]
    retain: dict[Part, tuple[Captioned, ...]]


def split(items: Iterable[Captioned], concepts: Sequence[Concept]) -> Split:
    """Splits by image, never by caption.

    Raises DataError where a side or a part of it is empty, and lists the near words where a
    concept occurs in no caption.
    """
    items = list(items)
    for concept in concepts:
        if not any(concept.in_text(c) for item in items for c in item.captions):
            raise DataError(_unknown(concept, items))
    forget = [i for i in items if any(c.in_text(t) for c in concepts for t in i.captions)]
    inside = set(forget)
    retain = [item for item in items if item not in inside]
    names = ", ".join(concept.name for concept in concepts)
    if not retain:
        raise DataError(f"concept {names}: every image mentions it, nothing is left to retain")
    for side, title in ((forget, "forget"), (retain, "retain")):
        if len(side) < 3:
            raise DataError(f"concept {names}: only {len(side)} {title} images; needs at least 3")
    return Split(parts_of(forget), parts_of(retain))


def with_images(sides: Split, data: Dataset) -> Split:
    """`sides` without the images that are missing. Raises DataError where a part has none left."""
    if not data.missing:
        return sides
    left = Split(
        *(
            {p: tuple(i for i in side[p] if i.image in data.files) for p in PARTS}
            for side in (sides.forget, sides.retain)
        )
    )
    for title, side in (("forget", left.forget), ("retain", left.retain)):
        for part in PARTS:
            if not side[part]:
                raise DataError(
                    f"--data {data.folder}: {len(data.missing)} of {len(data.items)} images are "
                    f"missing, first {data.missing[0]}; none is left to {title} ({part})"
                )
    return left


def _unknown(concept: Concept, items: list[Captioned]) -> str:
    words = Counter(
        word
        for item in items
        for c in item.captions
        for word in re.findall(r"[^\W\d_]{3,}", c.lower())
    )
    near = get_close_matches(concept.name.lower(), words, n=5, cutoff=0.6)
    some = near or [word for word, _ in words.most_common(25)[-5:]]
    hint = f"{'near words' if near else 'words'} there: {', '.join(some)}"
    return f"--concept {concept.name}: in no caption of the data; {hint}"
