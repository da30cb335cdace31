"""Image files: the formats that are read, and one way to open them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from ..errors import DataError, reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """The image at `path` as RGB; `data` gives its bytes if they are already in memory.

    Raises DataError if the file is missing or not a readable image.
    """
    if data is None and path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file")
    try:
        file = path if data is None else io.BytesIO(data)
        with warnings.catch_warnings(), Image.open(file, formats=_FORMATS) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(f"{path}: not a readable image ({reason(error)})") from None
