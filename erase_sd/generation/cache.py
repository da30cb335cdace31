"""The original's images, kept in the cache for all runs: a folder a batch, each image's hash in its
name."""

from __future__ import annotations

from collections.abc import Sequence

from ..files import cache_folder, digest, whole_folder


def keep(key: str, batch: Sequence[bytes]) -> None:
    """Stores the PNGs of a batch, all or none."""
    folder = cache_folder() / "images" / key
    try:
        with whole_folder(folder) as partial:
            for i, data in enumerate(batch):
                (partial / f"{i:04}-{digest(data)[:32]}.png").write_bytes(data)
    except OSError:
        if len(find(key, len(batch))) != len(batch):  # else another process has kept the same
            raise


def find(key: str, count: int) -> list[bytes]:
    """The PNGs of a batch; none where one of the `count` is missing or its bytes are not its name's
    hash."""
    folder = cache_folder() / "images" / key
    try:
        files = sorted(folder.glob("*.png"))
        found = [file.read_bytes() for file in files]
    except OSError:  # another process puts a whole batch in its place
        return []
    names = [file.stem[5:] for file in files]
    whole = len(found) == count and names == [digest(data)[:32] for data in found]
    return found if whole else []
