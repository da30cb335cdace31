"""The original's images, kept in the cache for all runs: a folder a batch, each image's hash in its
name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from .files import cache_folder, digest, write_bytes


def keep(key: str, batch: Sequence[bytes]) -> None:
    """Stores the PNGs of a batch."""
    for i, data in enumerate(batch):
        write_bytes(cache_folder() / "images" / key / f"{i:04}-{digest(data)[:32]}.png", data)


def find(key: str, count: int) -> list[bytes]:
    """The PNGs of a batch; none where one of the `count` is missing or its bytes are not its name's
    hash."""
    folder = cache_folder() / "images" / key
    files = sorted(folder.glob("*.png"))
    found = [file.read_bytes() for file in files]
    names = [file.stem[5:] for file in files]
    if len(found) == count and names == [digest(data)[:32] for data in found]:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    return []
