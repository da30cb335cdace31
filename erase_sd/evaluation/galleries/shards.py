"""Captioned images in webdataset shards, as CC12M comes: `key.jpg` beside `key.txt` in `*.tar`."""

from __future__ import annotations

import functools
import itertools
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...data.concept import Concept
from ...errors import DataError, SettingError
from ...files import digest, key_of
from ...models.clip import open_image
from ...runtime import say
from .gallery import MOST, Gallery, Side, choose, of_captions, side_of

SUFFIXES = ("jpg", "jpeg", "png", "webp")


def read(folder: Path, shards: Sequence[Path], concepts: Sequence[Concept]) -> Gallery:
    """The first images of each side, in the shards' order, at most MOST in all; the first of each
    concept is among them.

    What has no caption in UTF-8, or no image that can be read, is left out and counted. Raises
    DataError for a shard that is damaged, and where a side has no image.
    """
    sides: dict[Side, list[tuple[str, bytes]]] = {"forget": [], "retain": []}
    left_out, unseen = 0, list(concepts)
    for sample in itertools.chain.from_iterable(map(_samples, shards)):
        pair = _pair(sample, folder)
        if pair is None:
            left_out += 1
            continue
        side = sides[side_of(pair[:1], concepts)]
        if any(concept.in_text(pair[0]) for concept in unseen):
            side.insert(0, pair)
            unseen = [concept for concept in unseen if not concept.in_text(pair[0])]
        elif len(side) < MOST:
            side.append(pair)
        if not unseen and min(map(len, sides.values())) >= MOST // 2:
            break
    if unseen:
        raise DataError(f"--images {folder}: no caption with an image mentions {unseen[0].name}")
    if not sides["retain"]:
        raise DataError(f"--images {folder}: every caption mentions a concept; none is to retain")
    if left_out:
        say(f"{folder}: {left_out} entries without a caption or a readable image are left out")
    pairs = choose(sides["forget"], sides["retain"])
    about = {
        "kind": "webdataset shards", "folder": str(folder), "shards": [s.name for s in shards],
        "left_out": left_out, "digest": key_of([[text, digest(data)] for text, data in pairs]),
    }  # fmt: skip
    opened = [((text,), functools.partial(open_image, folder, data)) for text, data in pairs]
    return of_captions(about, opened, concepts)


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    """What the library groups under one key. The file is opened here: with its secure mode on, the
    library opens none itself, runs no command, and unpickles nothing."""
    try:
        import webdataset.utils
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ModuleNotFoundError:
        raise SettingError(
            f"--images {shard}: needs the library webdataset; pip install -e '.[shards]' in the clone"
        ) from None
    webdataset.utils.enforce_security = True  # what WDS_SECURE=1 sets, where nobody has imported it
    try:
        with shard.open("rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": shard.name, "stream": stream}]))
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        why = str(error.args[0] if error.args else error).splitlines() or [type(error).__name__]
        raise DataError(f"{shard}: damaged shard ({why[0]})") from None


def _pair(sample: dict[str, Any], folder: Path) -> tuple[str, bytes] | None:
    """Caption and image of one key; None where either is missing or cannot be read."""
    data = next((sample[suffix] for suffix in SUFFIXES if suffix in sample), None)
    try:
        caption = " ".join(sample.get("txt", b"").decode().split())
        if not caption or data is None:
            return None
        open_image(folder / sample["__key__"], data)
    except (UnicodeDecodeError, DataError):
        return None
    return caption, data
