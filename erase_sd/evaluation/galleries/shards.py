"""The images of webdataset shards as a gallery: the first of each set, in the order of the shards."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...data.concept import Concept
from ...data.images import Entry, open_image
from ...data.pair import CaptionPair, ConceptSet
from ...data.shards import Sample, samples_of
from ...errors import DataError
from ...files import key_of
from ...runtime import log
from .gallery import MAX_IMAGES, Gallery, balanced, captioned_images, coco_classes

CaptionedEntry = tuple[CaptionPair, Entry]


def shard_gallery(folder: Path, shards: Sequence[Path], concepts: Sequence[Concept]) -> Gallery:
    """The first images of each set in the order of the shards, at most MAX_IMAGES in all; the first
    image of every concept is among them.

    Samples without a UTF-8 caption or a readable image are left out and counted. Raises DataError for
    a damaged shard, and if a concept or the retain set has no image.
    """
    sets: dict[ConceptSet, list[CaptionedEntry]] = {"forget": [], "retain": []}
    left_out, missing = 0, [concept.name for concept in concepts]
    for sample in itertools.chain.from_iterable(map(samples_of, shards)):
        captioned = _captioned(sample, concepts)
        if captioned is None:
            left_out += 1
            continue
        pair, _ = captioned
        of_set = sets[pair.set]
        if not set(missing).isdisjoint(pair.mentions):
            of_set.insert(0, captioned)
            missing = [name for name in missing if name not in pair.mentions]
        elif len(of_set) < MAX_IMAGES:
            of_set.append(captioned)
        if not missing and min(map(len, sets.values())) >= MAX_IMAGES // 2:
            break
    _check_sets(folder, missing, sets)
    if left_out:
        log.warning(
            "%s: %d samples without a caption or a readable image are left out", folder, left_out
        )
    chosen = balanced(sets["forget"], sets["retain"])
    return Gallery(
        kind="webdataset shards",
        folder=folder,
        digest=key_of([[pair.caption, entry.sha256] for pair, entry in chosen]),
        images=captioned_images(
            (((pair,), functools.partial(open_image, entry)) for pair, entry in chosen), concepts
        ),
        forget_classes=coco_classes(concepts),
        details={"shards": [shard.name for shard in shards], "left_out": left_out},
    )


def _check_sets(
    folder: Path, missing: Sequence[str], sets: Mapping[ConceptSet, Sequence[CaptionedEntry]]
) -> None:
    if missing:
        rule = f"no caption with a readable image mentions {missing[0]}"
        raise DataError(rule, field="images", value=folder)
    if not sets["retain"]:
        rule = "every caption mentions a concept; needs one to retain"
        raise DataError(rule, field="images", value=folder)


def _captioned(sample: Sample, concepts: Sequence[Concept]) -> CaptionedEntry | None:
    """The sample's caption pair and image; None if either is missing or cannot be read."""
    if sample.image is None or not sample.caption:
        return None
    try:
        open_image(sample.image)
    except DataError:
        return None
    mentions = tuple(concept.name for concept in concepts if concept.in_text(sample.caption))
    pair = CaptionPair(
        caption=sample.caption,
        image=sample.image.name,
        mentions=mentions,
        set="forget" if mentions else "retain",
        split="held-out",
    )
    return pair, sample.image
