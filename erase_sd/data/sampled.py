"""A sample of a folder of millions of captioned images, in memory that does not grow with them."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runtime import log
from .concept import Concept
from .dataset import CaptionedImage, Dataset
from .images import Entry
from .pair import ConceptSet
from .shard_index import IndexedSample, index_shards, indexed
from .split import image_hash

MOST_IMAGES = 25_000
"""Maximum number of images kept in each set: their training split exceeds the 11,520 retain captions that
the default 120 steps of 96 read."""


def read_shards(folder: Path, shards: Sequence[Path], concepts: Sequence[Concept] = ()) -> Dataset:
    """The captioned images of the shards: at most MOST_IMAGES that mention one of the `concepts`, and at
    most as many that mention none, those whose names have the smallest hashes.

    Samples without caption or image, or with the name of an earlier one, are left out and counted.
    Raises DataError for a damaged shard, and if no sample has both.
    """
    index_shards(shards)
    sets: dict[ConceptSet, _Smallest] = {"forget": _Smallest(), "retain": _Smallest()}
    captions, images = _ListDigest(), _ListDigest()
    left_out = 0
    for shard in shards:
        names = set[str]()
        for sample in indexed(shard):
            if not sample.image or not sample.caption or sample.image in names:
                left_out += 1
                continue
            names.add(sample.image)
            captions.add([sample.image, None, sample.caption])
            images.add([sample.image, sample.sha256])
            mentioned = any(concept.in_text(sample.caption) for concept in concepts)
            sets["forget" if mentioned else "retain"].add(captions.count, sample, shard)
    if not captions.count:
        raise DataError(
            f"{folder}: no image in the shards has a caption; needs key.txt beside key.jpg"
        )
    if left_out:
        log.warning(
            "%s: %d samples without a caption or an image, or with the name of an earlier one, are left out",
            folder, left_out,
        )  # fmt: skip
    kept = sorted(row for own in sets.values() for row in own.rows())
    if len(kept) < captions.count:
        log.info("%s: %d of %d images are used", folder, len(kept), captions.count)
    return Dataset(
        folder,
        folder,
        "webdataset shards",
        captions.digest(),
        tuple(CaptionedImage(entry.name, (caption,)) for _, caption, entry in kept),
        {entry.name: entry for _, _, entry in kept},
        images_sha256=images.digest()[:16],
    )


class _Smallest:
    """The MOST_IMAGES samples whose names have the smallest hashes."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, IndexedSample, Path]] = []

    def add(self, number: int, sample: IndexedSample, shard: Path) -> None:
        """Adds a sample, with its number in the shards' order, if its hash is small enough."""
        rank = -int.from_bytes(image_hash(sample.image))
        if len(self._heap) < MOST_IMAGES:
            heapq.heappush(self._heap, (rank, number, sample, shard))
        elif rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, (rank, number, sample, shard))

    def rows(self) -> Iterable[tuple[int, str, Entry]]:
        """Number, caption and image of each."""
        return ((n, sample.caption, sample.entry(shard)) for _, n, sample, shard in self._heap)


class _ListDigest:
    """SHA-256 of a list's JSON, an item at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._sha256 = hashlib.sha256(b"[")

    def add(self, item: Any) -> None:
        """Adds the next item."""
        self._sha256.update(f"{', ' if self.count else ''}{json.dumps(item)}".encode())
        self.count += 1

    def digest(self) -> str:
        """The hash, in hexadecimal."""
        whole = self._sha256.copy()
        whole.update(b"]")
        return whole.hexdigest()
