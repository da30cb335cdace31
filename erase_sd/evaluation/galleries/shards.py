"""Captioned images in webdataset shards, the format of CC12M: `key.jpg` beside `key.txt` in `*.tar`."""

from __future__ import annotations

import functools
import itertools
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.concept import Concept
from ...data.images import open_image
from ...data.pair import CaptionPair, ConceptSet
from ...errors import DataError, SettingError
from ...files import digest, key_of
from ...runtime import log
from .gallery import MAX_IMAGES, Gallery, balanced, captioned_images, coco_classes

SHARD_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Sample:
    """A caption pair of a shard and the bytes of its image."""

    pair: CaptionPair
    data: bytes


def read_shards(folder: Path, shards: Sequence[Path], concepts: Sequence[Concept]) -> Gallery:
    """The first images of each set in the order of the shards, at most MAX_IMAGES in all; the first
    image of every concept is among them.

    Entries without a UTF-8 caption or a readable image are left out and counted. Raises DataError for
    a damaged shard, and if a concept or the retain set has no image.
    """
    sets: dict[ConceptSet, list[Sample]] = {"forget": [], "retain": []}
    left_out, missing = 0, [concept.name for concept in concepts]
    for entry in itertools.chain.from_iterable(map(_entries, shards)):
        sample = _sample(entry, folder, concepts)
        if sample is None:
            left_out += 1
            continue
        samples = sets[sample.pair.set]
        if not set(missing).isdisjoint(sample.pair.mentions):
            samples.insert(0, sample)
            missing = [name for name in missing if name not in sample.pair.mentions]
        elif len(samples) < MAX_IMAGES:
            samples.append(sample)
        if not missing and min(map(len, sets.values())) >= MAX_IMAGES // 2:
            break
    _check_sets(folder, missing, sets)
    if left_out:
        log.warning(
            "%s: %d entries without a caption or a readable image are left out", folder, left_out
        )
    chosen = balanced(sets["forget"], sets["retain"])
    return Gallery(
        kind="webdataset shards",
        folder=folder,
        digest=key_of([[sample.pair.caption, digest(sample.data)] for sample in chosen]),
        images=captioned_images(
            ((sample.pair,), functools.partial(open_image, folder, sample.data))
            for sample in chosen
        ),
        forget_classes=coco_classes(concepts),
        details={"shards": [shard.name for shard in shards], "left_out": left_out},
    )


def _check_sets(
    folder: Path, missing: Sequence[str], sets: Mapping[ConceptSet, Sequence[Sample]]
) -> None:
    if missing:
        rule = f"no caption with a readable image mentions {missing[0]}"
        raise DataError(rule, field="images", value=folder)
    if not sets["retain"]:
        rule = "every caption mentions a concept; needs one to retain"
        raise DataError(rule, field="images", value=folder)


def _entries(shard: Path) -> Iterator[dict[str, Any]]:
    """Files of the shard, grouped by key.

    The shard is opened here, because webdataset's secure mode opens no files itself, runs no commands
    and unpickles nothing.
    """
    try:
        import webdataset.utils
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ModuleNotFoundError:
        raise SettingError(
            "shards need the library webdataset; run pip install -e '.[shards]' in the clone",
            field="images",
            value=shard,
        ) from None
    webdataset.utils.enforce_security = True  # as WDS_SECURE=1 does, if set before the import
    try:
        with shard.open("rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": shard.name, "stream": stream}]))
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        why = str(error.args[0] if error.args else error).splitlines() or [type(error).__name__]
        raise DataError(f"{shard}: damaged shard ({why[0]})") from None


def _sample(entry: Mapping[str, Any], folder: Path, concepts: Sequence[Concept]) -> Sample | None:
    """The entry's caption pair and image; None if either is missing or cannot be read."""
    suffix = next((suffix for suffix in SHARD_IMAGE_SUFFIXES if suffix in entry), None)
    try:
        caption = " ".join(entry.get("txt", b"").decode().split())
        if not caption or suffix is None:
            return None
        open_image(folder / entry["__key__"], entry[suffix])
    except (UnicodeDecodeError, DataError):
        return None
    mentions = tuple(concept.name for concept in concepts if concept.in_text(caption))
    pair = CaptionPair(
        caption=caption,
        image=f"{entry['__key__']}.{suffix}",
        mentions=mentions,
        set="forget" if mentions else "retain",
        split="held-out",
    )
    return Sample(pair, entry[suffix])
