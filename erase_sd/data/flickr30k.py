"""Flickr30K as people have it: captions in one of five formats, images in any sub-folder."""

from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import DataError
from ..files import digest
from .formats import FORMATS, Row
from .formats import TOKEN_FILE as TOKEN_FILE

Part = Literal["train", "validation", "held-out"]
PARTS: tuple[Part, ...] = ("train", "validation", "held-out")
IMAGE_FOLDER = "flickr30k-images"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_PART_OF: dict[str, Part] = {
    "train": "train", "restval": "train", "val": "validation", "test": "held-out",
}  # fmt: skip


@dataclass(frozen=True)
class Captioned:
    """One image (its file name), its captions, and its part in the dataset's own split, if any."""

    image: str
    captions: tuple[str, ...]
    part: Part | None = None


@dataclass(frozen=True)
class Dataset:
    """Captioned images of one folder, in the order of the captions.

    `source` is the captions' file or folder, `digest` the SHA-256 of what was read of it: names,
    captions and parts. `files` holds the images that are there, by name.
    """

    folder: Path
    source: Path
    format: str
    digest: str
    items: tuple[Captioned, ...]
    files: Mapping[str, Path]

    @functools.cached_property
    def missing(self) -> tuple[str, ...]:
        """Names of the images that have captions and no file."""
        return tuple(item.image for item in self.items if item.image not in self.files)

    def path_of(self, item: Captioned) -> Path:
        """The image's file; DataError where it is missing."""
        if item.image not in self.files:
            raise DataError(f"--data {self.folder}: image {item.image} is missing")
        return self.files[item.image]


def read(folder: Path) -> Dataset:
    """Reads a Flickr30K folder; the captions' file may lie in a sub-folder too.

    Where the format has no split, `train.txt`, `val.txt` and `test.txt` beside the captions give
    one (an image's name or id a line); an image in none of them is for training. A missing image is
    no error here. Raises DataError, with file and line, for captions that are missing or malformed,
    an image's name that leaves the folder, text that is not UTF-8, or an image in two parts.
    """
    source, files = _look(folder)
    title, rows = FORMATS[source.name.lower()]
    captions: dict[str, list[str]] = {}
    parts: dict[str, Part] = {}
    for row in rows(source):
        text = " ".join(unicodedata.normalize("NFC", row.caption).split())
        if not text or "\0" in text:
            raise DataError(f"{row.at}: needs a caption, got {row.caption[:60]!r}")
        if row.image not in captions:
            _check_name(row)
            captions[row.image] = []
        captions[row.image].append(text)
        if row.split is not None:
            if row.split not in _PART_OF:
                raise DataError(
                    f"{row.at}: split {row.split!r}; needs one of {', '.join(_PART_OF)}"
                )
            if parts.setdefault(row.image, _PART_OF[row.split]) != _PART_OF[row.split]:
                raise DataError(f"{row.at}: image {row.image} is in two parts of the split")
    if not captions:
        raise DataError(f"{source}: holds no caption")
    parts = parts or _split_files(source.parent, captions)
    items = tuple(Captioned(i, tuple(c), parts.get(i)) for i, c in captions.items())
    read_of = json.dumps([[item.image, item.part, *item.captions] for item in items])
    return Dataset(folder, source, title, digest(read_of.encode()), items, files)


def _look(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The captions that lie highest, and every image by name, from one walk over the folder."""
    sources: list[Path] = []
    images: dict[str, Path] = {}
    walked: set[tuple[int, int]] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        here = Path(at)
        state = here.stat()
        if (state.st_dev, state.st_ino) in walked:  # a link to where we have been
            folders.clear()
            continue
        walked.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        sources += [here / n for n in files if n.lower() in FORMATS and n.lower() != "sentences"]
        sources += [here / n for n in folders if n.lower() == "sentences"]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES):
                images.setdefault(name, here / name)
    if not sources:
        raise DataError(f"--data {folder}: no {', '.join(FORMATS)} there; needs a Flickr30K folder")
    order = list(FORMATS)
    source = min(sources, key=lambda p: (len(p.parts), order.index(p.name.lower()), p))
    return source, images


def _check_name(row: Row) -> None:
    name = row.image
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise DataError(f"{row.at}: needs the name of an image's file, got {name!r}")


def _split_files(folder: Path, images: Mapping[str, object]) -> dict[str, Part]:
    """The parts of `images` by the three files of `folder`; empty unless all three are there."""
    paths = {part: folder / f"{name}.txt" for name, part in _PART_OF.items() if name != "restval"}
    if not all(path.is_file() for path in paths.values()):
        return {}
    image_of = {image.removesuffix(".jpg"): image for image in images}
    listed: dict[str, Part] = {}
    for part, path in paths.items():
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            image = image_of.get(line.strip().removesuffix(".jpg"))
            if image and listed.setdefault(image, part) != part:
                raise DataError(f"{path}: image {image} is in two parts of the split")
    return {image: listed.get(image, "train") for image in images} if listed else {}
