"""Flickr30K as it lies on disk: `results_20130124.token` and a folder of images.

A line is `1000092795.jpg#0<TAB>caption`; five lines an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import DataError
from ..files import digest

TOKEN_FILE = "results_20130124.token"  # noqa: S105
IMAGE_FOLDER = "flickr30k-images"


@dataclass(frozen=True)
class Captioned:
    """One image (its file name) and its captions."""

    image: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Captioned images of one folder, in the order of the file; `digest` is the file's SHA-256."""

    folder: Path
    digest: str
    items: tuple[Captioned, ...]

    def path_of(self, item: Captioned) -> Path:
        """The image's file; DataError where it is missing."""
        path = self.folder / IMAGE_FOLDER / item.image
        if not path.is_file():
            raise DataError(f"{path}: image missing, named in {TOKEN_FILE}")
        return path


def read(folder: Path) -> Dataset:
    """Reads a Flickr30K folder.

    Raises DataError, with file and line, for a missing or malformed file, an empty caption, an
    image name that leaves the folder, or text that is not UTF-8.
    """
    path = folder / TOKEN_FILE
    if not path.is_file():
        raise DataError(f"--data {folder}: no {TOKEN_FILE} there; needs a Flickr30K folder")
    captions: dict[str, list[str]] = {}
    raw_bytes = path.read_bytes()
    for number, raw in enumerate(raw_bytes.splitlines(), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{path}:{number}: not UTF-8") from None
        match = re.fullmatch(r"([^\t#]+)#\d+\t(.*)", line)
        if not match or not match[2].strip() or "\0" in line:
            raise DataError(f"{path}:{number}: needs `image.jpg#0<TAB>caption`, got {line[:60]!r}")
        image = match[1]
        if PurePosixPath(image).name != image or image == "..":
            raise DataError(f"{path}:{number}: image name {image!r} leaves the folder")
        captions.setdefault(image, []).append(match[2].strip())
    if not captions:
        raise DataError(f"{path}: holds no caption")
    return Dataset(
        folder, digest(raw_bytes), tuple(Captioned(i, tuple(c)) for i, c in captions.items())
    )
