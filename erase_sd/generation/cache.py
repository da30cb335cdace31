"""Batches of images as folders of files with hashes in their names; the original's are cached for all runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RunError
from ..files import cache_folder, digest, whole_folder
from ..reading import read_bytes


def image_cache() -> Path:
    """Folder of the original's images."""
    return cache_folder() / "images"


def store_batch(root: Path, key: str, batch: Sequence[bytes]) -> None:
    """Stores the PNGs of a batch in a folder of its own in `root`, all or none; OSError if it cannot."""
    folder = root / key
    try:
        with whole_folder(folder) as partial:
            for i, data in enumerate(batch):
                (partial / f"{i:04}-{_checksum(key, data)}.png").write_bytes(data)
    except OSError:
        if not cached_batch(root, key, len(batch)):  # else another process has stored it
            raise


def cached_batch(root: Path, key: str, count: int) -> list[bytes]:
    """The `count` PNGs of a batch; empty if one is missing or does not match its hash."""
    folder = root / key
    try:
        files = sorted(folder.glob("*.png"))
        batch = [read_bytes(file) for file in files]
    except (OSError, RunError):  # another process is replacing the folder, or it is damaged
        return []
    hashes = [file.stem[5:] for file in files]
    complete = len(batch) == count and hashes == [_checksum(key, data) for data in batch]
    return batch if complete else []


def _checksum(key: str, data: bytes) -> str:
    """Covers the batch's key too, so that another batch in its place is detected."""
    return digest(key.encode() + data)[:32]
