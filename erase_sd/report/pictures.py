"""Embeds all images of a page: small ones unchanged, large ones scaled down to fit its budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import open_image
from ..errors import DataError, RunError
from ..files import digest
from ..reading import read_bytes
from ..run.records import ImageRecord

MAX_SIDE = 384  # pixels; larger images are scaled down to this
PAGE_BUDGET = 6_500_000  # bytes of all images on a page; base64 adds a third
QUALITY_LADDER = (  # longest side in pixels, WebP quality
    (384, 80), (384, 60), (320, 50), (256, 45), (192, 40),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An image as a data URL, or the reason why it cannot be shown."""

    source: str = ""
    width: int = 1
    """Width of the image file, pixels; the embedded image may be smaller."""
    height: int = 1
    problem: str = ""


def embed_images(folder: Path, images: Sequence[ImageRecord]) -> dict[str, Picture]:
    """A picture for the file of each image record.

    A file that is missing, or whose hash is not the recorded one, becomes a problem: a report never
    shows an image other than the one that its numbers are about.
    """
    budget = PAGE_BUDGET // max(len(images), 1)
    return {image.file: _picture(folder / image.file, image.sha256, budget) for image in images}


def _picture(path: Path, sha256: str, budget: int) -> Picture:
    try:
        data = read_bytes(path)
    except (OSError, RunError):
        return Picture(problem="missing")
    if digest(data) != sha256:
        return Picture(problem="changed since it was generated")
    try:
        image = open_image(path, data)
    except DataError:
        return Picture(problem="not readable")
    kind, encoded = "png", data
    if max(image.size) > MAX_SIDE or len(data) > budget:
        kind, encoded = "webp", _compressed(image, budget)
    source = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
    return Picture(source, *image.size)


def _compressed(image: Image.Image, budget: int) -> bytes:
    """WebP within `budget` bytes, lossless if that fits; the smallest of the ladder if nothing does."""
    if max(image.size) <= MAX_SIDE:
        encoded = _webp(image, lossless=True)
        if len(encoded) <= budget:
            return encoded
    for side, quality in QUALITY_LADDER:
        scaled = image.copy()
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
        encoded = _webp(scaled, quality=quality)
        if len(encoded) <= budget:
            break
    return encoded


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", method=4, **options)
    return file.getvalue()
