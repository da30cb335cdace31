"""Captioned images in webdataset shards, the format of CC12M: `key.jpg` beside `key.txt` in `*.tar`.

A shard is read once from its first byte to its last, one entry at a time; only an image's position is kept,
and its bytes are read again where they are needed.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, reason
from ..files import digest
from .images import Entry

SHARD_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_CAPTION, MAX_IMAGE = 1 << 16, 1 << 28
"""Maximum size in bytes of a caption and of an image; larger entries are skipped."""


@dataclass
class Sample:
    """The entries of a shard that have one key."""

    key: str
    caption: str = ""
    """Empty if there is none, or if it is not UTF-8."""
    image: Entry | None = None


def shards_in(folder: Path) -> list[Path]:
    """The shards in a folder, in the order of their names."""
    return [path for path in sorted(folder.glob("*.tar")) if not path.name.startswith(".")]


def samples_of(shard: Path) -> Iterator[Sample]:
    """The samples of a shard: consecutive entries with the same key.

    Raises DataError for a damaged shard.
    """
    sample: Sample | None = None
    if not shard.is_file():
        raise DataError(f"{shard}: not a regular file")
    try:
        # Uncompressed only: a single image could not be read from a compressed shard.
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                place, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = _readable(f"{place}/{stem}" if place else stem)
                if sample is None or sample.key != key:
                    if sample:
                        yield sample
                    sample = Sample(key)
                _add(sample, shard, tar, member, suffix.lower())
            _check_end(tar)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{shard}: damaged shard ({reason(error)})") from None
    if sample:
        yield sample


def _readable(name: str) -> str:
    r"""The name of an entry; bytes that are not UTF-8, which tarfile escapes, as `\xff`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError unless what tarfile took for the end is the zero block that ends an archive.

    It takes a header that it cannot read, and a file that was cut off between two entries, for the end.
    """
    assert tar.fileobj is not None  # open for reading
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")
    if any(block):
        raise tarfile.ReadError("invalid header")


def _add(
    sample: Sample, shard: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str
) -> None:
    """Adds an entry to its sample, if it is the caption or an image."""
    if suffix != "txt" and suffix not in SHARD_IMAGE_SUFFIXES:
        return
    # A sparse entry of a few bytes may claim to hold terabytes.
    if member.issparse() or member.size > (MAX_CAPTION if suffix == "txt" else MAX_IMAGE):
        return
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    data = file.read()  # ReadError, if the shard ends before
    if suffix == "txt":
        try:
            sample.caption = " ".join(data.decode().replace("\0", " ").split())
        except UnicodeDecodeError:
            return
    else:
        sample.image = Entry(
            f"{shard.name}/{sample.key}.{suffix}",
            shard,
            member.offset_data,
            member.size,
            digest(data),
        )


def write_shards(folder: Path, pairs: Iterable[tuple[bytes, str]], size: int) -> None:
    """Writes pairs of a JPEG and its caption, `size` to a shard: `00000.tar` with `000000000.jpg` and
    `.txt`."""
    numbered = enumerate(pairs)
    for shard in itertools.count():
        if not (own := list(itertools.islice(numbered, size))):
            return
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number, (image, caption) in own:
                _write_entry(tar, f"{number:09}.jpg", image)
                _write_entry(tar, f"{number:09}.txt", caption.encode())


def _write_entry(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
