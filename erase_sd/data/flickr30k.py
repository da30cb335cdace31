"""Flickr30K in any of its published forms: captions in five formats, images in any subfolder."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..checked import walk_files
from ..errors import DataError
from .dataset import CaptionedImage, Dataset, digest_of
from .formats import FORMATS, CaptionRow
from .images import IMAGE_SUFFIXES, ImageSource
from .pair import Split

IMAGE_FOLDER = "flickr30k-images"

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "restval": "train", "val": "validation", "test": "held-out",
}  # fmt: skip


def read_flickr30k(folder: Path) -> Dataset:
    """Reads a Flickr30K folder; the captions may lie in a subfolder.

    If the format has no split, `train.txt`, `val.txt` and `test.txt` beside the captions give one
    (an image name or id per line); images in none of them are for training. Missing image files are
    allowed. Raises DataError, with file and line, for captions that are missing or malformed, image
    names that leave the folder, text that is not UTF-8, and images in two splits.
    """
    source, files = _find_files(folder)
    caption_format = FORMATS[source.name.lower()]
    captions, splits = _collect(caption_format.rows(source))
    if not captions:
        raise DataError(f"{source}: holds no captions")
    by_lower = {name.lower(): path for name, path in files.items()}
    for image in captions:  # a file 1.JPG is the image 1.jpg
        if image not in files and image.lower() in by_lower:
            files[image] = by_lower[image.lower()]
    splits = splits or _listed_splits(source.parent, captions)
    items = tuple(CaptionedImage(i, tuple(c), splits.get(i)) for i, c in captions.items())
    return Dataset(folder, source, caption_format.title, digest_of(items), items, files)


def _collect(rows: Iterable[CaptionRow]) -> tuple[dict[str, list[str]], dict[str, Split]]:
    """Captions and splits by image name."""
    captions: dict[str, list[str]] = {}
    splits: dict[str, Split] = {}
    for row in rows:
        text = " ".join(unicodedata.normalize("NFC", row.caption).split())
        if not text or "\0" in text:
            raise DataError(f"{row.at}: needs a caption, got {row.caption[:60]!r}")
        if row.image not in captions:
            _check_name(row)
            captions[row.image] = []
        captions[row.image].append(text)
        if row.split is not None:
            if row.split not in _SPLIT_NAMES:
                raise DataError(
                    f"{row.at}: split {row.split!r}; needs one of {', '.join(_SPLIT_NAMES)}"
                )
            split = _SPLIT_NAMES[row.split]
            if splits.setdefault(row.image, split) != split:
                raise DataError(f"{row.at}: image {row.image} is in two splits")
    return captions, splits


def has_captions(folder: Path) -> bool:
    """Whether a folder holds Flickr30K's captions in one of its formats."""
    return any(_caption_source(path) for path in walk_files(folder))


def _caption_source(path: Path) -> Path | None:
    """The file or folder of captions that a file is, or belongs to."""
    name = path.name.lower()
    if name in FORMATS and name != "sentences":
        return path
    return path.parent if path.parent.name.lower() == "sentences" else None


def _find_files(folder: Path) -> tuple[Path, dict[str, ImageSource]]:
    """The captions nearest to the top of the folder, and all image files by name."""
    sources: set[Path] = set()
    images: dict[str, ImageSource] = {}
    for path in walk_files(folder):
        if source := _caption_source(path):
            sources.add(source)
        elif path.name.lower().endswith(IMAGE_SUFFIXES):
            images.setdefault(path.name, path)
    if not sources:
        raise DataError(
            f"not a Flickr30K folder; needs one of {', '.join(FORMATS)}", field="data", value=folder
        )
    order = list(FORMATS)
    source = min(sources, key=lambda p: (len(p.parts), order.index(p.name.lower()), p))
    return source, images


def _check_name(row: CaptionRow) -> None:
    name = row.image
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise DataError(f"{row.at}: needs an image file name, got {name!r}")


def _listed_splits(folder: Path, images: Mapping[str, object]) -> dict[str, Split]:
    """Splits of `images` by the three lists in `folder`; empty unless all three exist."""
    lists = {
        split: folder / f"{name}.txt" for name, split in _SPLIT_NAMES.items() if name != "restval"
    }
    if not all(path.is_file() for path in lists.values()):
        return {}
    image_of = {image.removesuffix(".jpg"): image for image in images}
    splits: dict[str, Split] = {}
    for split, path in lists.items():
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            image = image_of.get(line.strip().removesuffix(".jpg"))
            if image and splits.setdefault(image, split) != split:
                raise DataError(f"{path}: image {image} is in two splits")
    return {image: splits.get(image, "train") for image in images} if splits else {}
