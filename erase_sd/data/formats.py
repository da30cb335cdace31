"""The formats that Flickr30K's captions come in, each read as one row per caption."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..reading import read_bytes

TOKEN_FILE = "results_20130124.token"  # noqa: S105
MAX_BYTES = 1 << 28
"""Maximum size of a caption file, before and after decompression; Flickr30K's own has 13 MB."""


class CaptionRow(NamedTuple):
    """One caption as it stands in the file."""

    at: str
    """Where it is, "file:line", for error messages."""
    image: str
    """File name of the image."""
    caption: str
    split: str | None = None
    """The dataset's own split ("train", "val", "test") if the format has one."""


class CaptionFormat(NamedTuple):
    """A caption format: what it is called, and its reader."""

    title: str
    rows: Callable[[Path], Iterator[CaptionRow]]


def _token_rows(path: Path) -> Iterator[CaptionRow]:
    """Young et al.'s own file, plain or gzipped: `1000092795.jpg#0<TAB>caption`."""
    for at, line in _lines(path):
        match = re.fullmatch(r"([^\t#]+)#\d+\t(.*)", line)
        if not match:
            raise DataError(f"{at}: needs `image.jpg#0<TAB>caption`, got {line[:60]!r}")
        yield CaptionRow(at, match[1], match[2])


def _kaggle_rows(path: Path) -> Iterator[CaptionRow]:
    """`image_name| comment_number| comment`. One row of the published file has white space instead
    of the second bar.

    Saved again by a spreadsheet, a line is one quoted cell, or three cells with commas, semicolons or
    tabs, in UTF-8 or Windows-1252.
    """
    names = ["image_name", "comment_number", "comment"]
    text = _text(path, fallback="cp1252")
    first = text.partition("\n")[0].strip()
    separator = next(
        (s for s in "|,;\t" if [n.strip(' "') for n in first.split(s)][:3] == names), ""
    )
    if not separator:
        raise DataError(
            f"{path}:1: needs the header `image_name| comment_number| comment`, got {first[:60]!r}"
        )
    if separator != "|":
        return _spreadsheet_rows(path, text, separator)
    return _bar_rows(path, text)


def _bar_rows(path: Path, text: str) -> Iterator[CaptionRow]:
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text.rstrip("\r\n"))[1:], 2):
        at = f"{path}:{number}"
        line = ",".join(next(_cells(path, [raw], ","))[1]) if raw.startswith('"') else raw
        line = line.rstrip(",")  # a spreadsheet pads its rows
        match = re.fullmatch(r"([^|]+)\|\s*\d+\s*(?:\||\s)([^|].*)", line)
        if not match:
            raise DataError(f"{at}: needs `image.jpg| 0| caption`, got {line[:60]!r}")
        yield CaptionRow(at, match[1].strip(), match[2])


def _spreadsheet_rows(path: Path, text: str, separator: str) -> Iterator[CaptionRow]:
    rows = _cells(path, io.StringIO(text, newline=""), separator)
    next(rows)
    for at, cells in rows:
        if not any(cells):
            continue
        if len(cells) < 3 or not cells[1].strip().isdecimal():
            raise DataError(f"{at}: needs image, number and caption, got {cells!r:.60}")
        caption = separator.join(cells[2:]).rstrip(separator)  # a caption's own commas, or padding
        yield CaptionRow(at, cells[0].strip(), caption)


def _cells(path: Path, lines: Iterable[str], separator: str) -> Iterator[tuple[str, list[str]]]:
    """("file:line", cells) of each row; DataError for one that is not CSV, or has a huge cell."""
    reader = csv.reader(lines, delimiter=separator)
    try:
        for cells in reader:
            yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _karpathy_rows(path: Path) -> Iterator[CaptionRow]:
    """Karpathy's `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`."""
    try:
        images = list(json.loads(_text(path))["images"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise DataError(f"{path}: needs a JSON object with a list of `images`") from None
    for number, image in enumerate(images):
        at = f"{path}: image {number}"
        try:
            captions = [sentence["raw"] for sentence in image["sentences"]]
            yield from _rows_of_image(at, image["filename"], captions, image["split"])
        except (KeyError, TypeError):
            raise DataError(f"{at}: needs `filename`, `split` and `sentences` with `raw`") from None


def _hub_rows(path: Path) -> Iterator[CaptionRow]:
    """The model hub's CSV: columns `raw` (a JSON list of captions), `filename` and `split`."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        for record in reader:
            at = f"{path}:{reader.line_num}"
            captions = json.loads(record["raw"])
            yield from _rows_of_image(at, record["filename"], captions, record["split"])
    except (KeyError, TypeError, ValueError, RecursionError, csv.Error):
        raise DataError(
            f"{path}:{reader.line_num}: needs columns raw (a JSON list), filename and split"
        ) from None


def _rows_of_image(at: str, image: Any, captions: Any, split: Any) -> Iterator[CaptionRow]:
    """Rows of one image. Raises TypeError if a value is not text."""
    if not isinstance(captions, list) or not all(
        isinstance(value, str) for value in (image, split, *captions)
    ):
        raise TypeError
    for caption in captions:
        yield CaptionRow(at, image, caption, split)


def _entities_rows(folder: Path) -> Iterator[CaptionRow]:
    """Flickr30K Entities: one file per image with lines `[/EN#1/people Two men] sit .`"""
    for path in sorted(folder.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)):
        for at, line in _lines(path):
            caption = re.sub(r"\[/EN#\d+(?:/\S+)? ([^\[\]]*)\]", r"\1", line)
            if "[/EN#" in caption:
                raise DataError(f"{at}: needs `[/EN#1/people Two men] ...`, got {line[:60]!r}")
            if caption.strip():
                yield CaptionRow(at, f"{path.stem}.jpg", caption)


def _bytes(path: Path) -> bytes:
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: holds more than {MAX_BYTES:,} bytes")
    data = read_bytes(path)
    if path.suffix != ".gz":
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged, cannot be decompressed ({error})") from None
    if len(text) > MAX_BYTES:  # a few megabytes may inflate to more than the memory
        raise DataError(f"{path}: holds more than {MAX_BYTES:,} bytes")
    return text


def _text(path: Path, fallback: str | None = None) -> str:
    """The file as UTF-8, or else in the encoding `fallback`."""
    data = _bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        with contextlib.suppress(UnicodeDecodeError):
            if fallback:
                return data.decode(fallback)
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every line."""
    for number, raw in enumerate(_bytes(path).splitlines(), 1):
        at = f"{path}:{number}"
        try:
            yield at, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{at}: not UTF-8") from None


FORMATS: dict[str, CaptionFormat] = {
    "dataset_flickr30k.json": CaptionFormat("Karpathy's JSON", _karpathy_rows),
    "flickr_annotations_30k.csv": CaptionFormat("the hub's CSV", _hub_rows),
    TOKEN_FILE: CaptionFormat("the token file", _token_rows),
    f"{TOKEN_FILE}.gz": CaptionFormat("the token file, gzipped", _token_rows),
    "results.csv": CaptionFormat("Kaggle's CSV", _kaggle_rows),
    "sentences": CaptionFormat("Flickr30K Entities", _entities_rows),
}
"""Formats by file or folder name in lower case. Of several in one folder the first is read: those
with a split of their own come first."""
