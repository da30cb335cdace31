"""The five formats in which people have Flickr30K's captions; one caption a row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError

TOKEN_FILE = "results_20130124.token"  # noqa: S105


class Row(NamedTuple):
    """One caption: where it stands ("file:line"), its image's file name, and the image's part in
    the dataset's own split ("train", "val" or "test"), where the format has one."""

    at: str
    image: str
    caption: str
    split: str | None = None


def token(path: Path) -> Iterator[Row]:
    """Young et al.'s own file, packed or not: `1000092795.jpg#0<TAB>caption`."""
    for at, line in _lines(path):
        match = re.fullmatch(r"([^\t#]+)#\d+\t(.*)", line)
        if not match:
            raise DataError(f"{at}: needs `image.jpg#0<TAB>caption`, got {line[:60]!r}")
        yield Row(at, match[1], match[2])


def kaggle(path: Path) -> Iterator[Row]:
    """`image_name| comment_number| comment`. In one row of the file that all have, white space
    stands for the second bar."""
    lines = _lines(path)
    at, header = next(lines, (f"{path}:1", ""))
    if [name.strip() for name in header.split("|")] != ["image_name", "comment_number", "comment"]:
        raise DataError(
            f"{at}: needs `image_name| comment_number| comment` first, got {header[:60]!r}"
        )
    for at, line in lines:
        match = re.fullmatch(r"([^|]+)\|\s*\d+\s*(?:\||\s)([^|].*)", line)
        if not match:
            raise DataError(f"{at}: needs `image.jpg| 0| caption`, got {line[:60]!r}")
        yield Row(at, match[1].strip(), match[2])


def karpathy(path: Path) -> Iterator[Row]:
    """Karpathy's `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`."""
    try:
        images = list(json.loads(_text(path))["images"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{path}: no JSON object with a list of `images`") from None
    for number, image in enumerate(images):
        at = f"{path}: image {number}"
        try:
            captions = [sentence["raw"] for sentence in image["sentences"]]
            yield from _of_one(at, image["filename"], captions, image["split"])
        except (KeyError, TypeError):
            raise DataError(f"{at}: needs `filename`, `split` and `sentences` with `raw`") from None


def hub(path: Path) -> Iterator[Row]:
    """The model hub's CSV: columns `raw`, a JSON list of captions, `filename` and `split`."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        for record in reader:
            at = f"{path}:{reader.line_num}"
            captions = json.loads(record["raw"])
            yield from _of_one(at, record["filename"], captions, record["split"])
    except (KeyError, TypeError, json.JSONDecodeError, csv.Error):
        raise DataError(
            f"{path}:{reader.line_num}: needs columns raw (a JSON list), filename and split"
        ) from None


def _of_one(at: str, image: Any, captions: Any, split: Any) -> Iterator[Row]:
    if not isinstance(captions, list) or not all(
        isinstance(value, str) for value in (image, split, *captions)
    ):
        raise TypeError
    for caption in captions:
        yield Row(at, image, caption, split)


def entities(folder: Path) -> Iterator[Row]:
    """Flickr30K Entities: a file an image, `[/EN#1/people Two men] sit .` a line."""
    for path in sorted(folder.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)):
        for at, line in _lines(path):
            caption = re.sub(r"\[/EN#\d+(?:/\S+)? ([^\[\]]*)\]", r"\1", line)
            if "[/EN#" in caption:
                raise DataError(f"{at}: needs `[/EN#1/people Two men] ...`, got {line[:60]!r}")
            if caption.strip():
                yield Row(at, f"{path.stem}.jpg", caption)


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged, cannot be unpacked ({error})") from None


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, raw in enumerate(_bytes(path).splitlines(), 1):
        at = f"{path}:{number}"
        try:
            yield at, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{at}: not UTF-8") from None


# By the name of the file or folder in lower case. Where several lie side by side, the first is
# read: those with a split of their own come first.
FORMATS: dict[str, tuple[str, Callable[[Path], Iterator[Row]]]] = {
    "dataset_flickr30k.json": ("Karpathy's JSON", karpathy),
    "flickr_annotations_30k.csv": ("the hub's CSV", hub),
    TOKEN_FILE: ("the token file", token),
    f"{TOKEN_FILE}.gz": ("the token file, packed", token),
    "results.csv": ("Kaggle's CSV", kaggle),
    "sentences": ("Flickr30K Entities", entities),
}
