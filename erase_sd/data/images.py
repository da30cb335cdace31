"""Image files: the formats that are read, and one way to open them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ..errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """The image at `path` as RGB; `data` gives its bytes if they are already in memory.

    Raises DataError if the file is missing or not a readable image.
    """
    try:
        file = path if data is None else io.BytesIO(data)
        with Image.open(file, formats=_FORMATS) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
