"""The index of a shard, built once and cached: the caption, position and hash of each image.

Reading a shard means reading all of its images; its index has a few bytes per image. Several processes, on
one machine or several, index the shards of a folder together, each claiming one shard at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checked import load_bytes, save_bytes
from ..errors import RunError
from ..files import cache_folder, json_lines, key_of
from ..reading import parse_records
from ..runtime import log
from ..sharing.claims import Claims
from .images import Entry
from .shards import samples_of


@dataclass(frozen=True, kw_only=True)
class IndexedSample:
    """A sample of a shard."""

    image: str
    """Name of its image, unique in the folder; empty if it has none."""
    caption: str
    """Empty if it has none."""
    start: int = 0
    """Where the image's bytes begin in the shard."""
    size: int = 0
    """Number of bytes."""
    sha256: str = ""
    """Hash of the bytes."""

    def entry(self, shard: Path) -> Entry:
        """The image."""
        return Entry(self.image, shard, self.start, self.size, self.sha256)


def index_shards(shards: Sequence[Path]) -> None:
    """Indexes the shards that have no index yet. Raises DataError for a damaged one."""
    if all(_path(shard).is_file() for shard in shards):
        return
    try:
        claims = Claims(cache_folder() / "shards" / ".claims")
    except OSError:  # without a cache, the samples are read from the shards
        return
    names = [str(shard) for shard in shards]
    for number in claims.take(names, lambda n: _path(shards[n]).is_file()):
        _index(shards[number])
    claims.clear(names)


def indexed(shard: Path) -> list[IndexedSample]:
    """The samples of a shard. Raises DataError if the shard has no index yet and is damaged."""
    if data := load_bytes(_path(shard)):
        return parse_records(data, IndexedSample, str(_path(shard)))
    return _index(shard)


def _index(shard: Path) -> list[IndexedSample]:
    path = _path(shard)  # of what is read now: the shard may be replaced in the meantime
    samples = []
    for sample in samples_of(shard):
        place = sample.image
        samples.append(
            IndexedSample(
                image=place.name, caption=sample.caption,
                start=place.start, size=place.size, sha256=place.sha256,
            )
            if place
            else IndexedSample(image="", caption=sample.caption)
        )  # fmt: skip
    try:
        save_bytes(path, json_lines(samples).encode())
    except (OSError, RunError, UnicodeEncodeError) as error:
        log.warning("%s: its index is not cached (%s)", shard, error)
    return samples


def _path(shard: Path) -> Path:
    """Where the index of a shard is cached; another path once the shard has changed."""
    state = shard.stat()
    place = shard.parent.resolve() / shard.name  # a link's own name is in the names of its images
    key = key_of([str(place), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return cache_folder() / "shards" / f"{key}.jsonl"
