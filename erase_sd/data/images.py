"""Images: the formats that are read, where they can be, and one way to open and to encode them."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, reason
from ..files import digest, hash_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Entry:
    """An image inside a larger file: an entry of a shard, or the pixels of an image of CIFAR-100."""

    name: str
    file: Path
    start: int
    """Where its bytes begin in the file."""
    size: int
    """Number of bytes."""
    sha256: str
    """Hash of the bytes."""
    width: int | None = None
    """Side of a square of raw pixels, in planes of red, green and blue; None for an encoded image."""

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def read(self) -> bytes:
        """The bytes; DataError if the file no longer holds them."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self}: not a readable image ({reason(error)})") from None
        if digest(data) != self.sha256:
            raise DataError(f"{self}: not a readable image (the file has changed)")
        return data


ImageSource = Path | Entry
"""An image file, or an image inside a larger file."""


def open_image(source: ImageSource, data: bytes | None = None) -> Image.Image:
    """The image as RGB; `data` gives its bytes if they are already in memory.

    Raises DataError if the file is missing or not a readable image.
    """
    if isinstance(source, Entry):
        data = source.read()
        if source.width:
            planes = np.frombuffer(data, np.uint8).reshape(3, source.width, source.width)
            return Image.fromarray(planes.transpose(1, 2, 0))
    elif data is None and source.exists() and not source.is_file():
        raise DataError(f"{source}: not a regular file")
    try:
        file = source if data is None else io.BytesIO(data)
        with warnings.catch_warnings(), Image.open(file, formats=_FORMATS) as image:  # type: ignore[arg-type]
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        why = re.sub(r" ?<_io[^>]*>", "", reason(error))  # bytes have no name
        raise DataError(f"{source}: not a readable image ({why})") from None


def png_of(image: Image.Image) -> bytes:
    """The image as a PNG, compressed fast rather than well."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextlib.contextmanager
def as_files(images: Iterable[Image.Image]) -> Iterator[list[Path]]:
    """Images as files in a temporary folder, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, image in enumerate(images):
            files.append(Path(folder, f"{number:05}.png"))
            files[-1].write_bytes(png_of(image))
        yield files


def hash_image(source: ImageSource) -> str:
    """SHA-256 of an image's bytes."""
    return hash_file(source) if isinstance(source, Path) else source.sha256
