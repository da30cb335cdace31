"""Images for a page that holds all of them: as they are where they are small, else smaller."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import digest

SIDE = 384  # pixels; larger images are scaled down to this
BUDGET = 6_500_000  # bytes of all images of a page; base64 makes them a third larger
RUNGS = ((384, 80), (384, 60), (320, 50), (256, 45), (192, 40))  # side in pixels, WebP quality


@dataclass(frozen=True)
class Picture:
    """An image to embed; `lost` says why there is none. Width and height are the file's, pixels."""

    source: str = ""
    width: int = 1
    height: int = 1
    lost: str = ""


def embed(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Picture]:
    """Pictures by file, of rows of `images.jsonl`.

    A file that is missing, or is no longer what was made, is lost: a report never shows pictures
    that its numbers are not about.
    """
    most = BUDGET // max(len(rows), 1)
    return {row["file"]: _picture(folder / row["file"], row["sha256"], most) for row in rows}


def _picture(path: Path, sha256: str, most: int) -> Picture:
    try:
        data = path.read_bytes()
    except OSError:
        return Picture(lost="missing")
    if digest(data) != sha256:
        return Picture(lost="changed since it was made")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return Picture(lost="no readable image")
    kind, kept = "png", data
    if max(image.size) > SIDE or len(data) > most:
        kind, kept = "webp", _smaller(image, most)
    source = f"data:image/{kind};base64,{base64.b64encode(kept).decode()}"
    return Picture(source, *image.size)


def _smaller(image: Image.Image, most: int) -> bytes:
    """WebP of at most `most` bytes, lossless where that will do; the last rung where none does."""
    if max(image.size) <= SIDE:
        kept = _webp(image, lossless=True)
        if len(kept) <= most:
            return kept
    for side, quality in RUNGS:
        scaled = image.copy()
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
        kept = _webp(scaled, quality=quality)
        if len(kept) <= most:
            break
    return kept


def _webp(image: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", method=4, **how)
    return file.getvalue()
