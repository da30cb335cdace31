"""Cache of the original's images, shared by all runs: one folder per batch, file names carry hashes."""

from __future__ import annotations

from collections.abc import Sequence

from ..files import cache_folder, digest, whole_folder
from ..runtime import log


def store_batch(key: str, batch: Sequence[bytes]) -> None:
    """Stores the PNGs of a batch, all or none; a warning if the cache cannot be written."""
    folder = cache_folder() / "images" / key
    try:
        with whole_folder(folder) as partial:
            for i, data in enumerate(batch):
                (partial / f"{i:04}-{digest(data)[:32]}.png").write_bytes(data)
    except OSError as error:
        if not cached_batch(key, len(batch)):  # else another process has stored the same batch
            log.warning("%s: the original's images are not cached (%s)", folder, error.strerror)


def cached_batch(key: str, count: int) -> list[bytes]:
    """The `count` PNGs of a batch; empty if one is missing or does not match its hash."""
    folder = cache_folder() / "images" / key
    try:
        files = sorted(folder.glob("*.png"))
        batch = [file.read_bytes() for file in files]
    except OSError:  # another process is replacing the folder
        return []
    hashes = [file.stem[5:] for file in files]
    complete = len(batch) == count and hashes == [digest(data)[:32] for data in batch]
    return batch if complete else []
