"""What it takes to generate many images, before the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_space
from ..runtime import Approval, log

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MANY_IMAGES = 2_000
"""From this many on, their number and the time they may take are logged before the first is generated, and
a user at a terminal is asked."""
BYTES_PER_PIXEL = 2.0
"""Approximate size of a generated image as PNG."""


def cost_line(images: int, seconds: float | None) -> str:
    """How many images are to be generated, and how long that may take."""
    line = f"{images:,} images are to be generated"
    if seconds is None:
        return line
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{line}, in about {seconds / length:.0f} {unit}"
    return f"{line}, in about {seconds:.0f} s"


def check_image_space(folder: Path, images: int, size: int) -> None:
    """Raises RunError if the disk of `folder` is too small for square images of side `size`, pixels."""
    check_space(folder, BYTES_PER_PIXEL * size**2 * images)


def announce(
    folder: Path,
    pipe: DiffusionPipeline,
    images: int,
    steps: int,
    guidance: float,
    approve: Approval | None,
    *,
    at_least: bool = False,
) -> None:
    """Logs the number and time of MANY_IMAGES or more and calls `approve`; nothing for fewer images.

    With `at_least`, more may follow.
    """
    from ..models.sampling import seconds_per_image

    if images < MANY_IMAGES:
        return
    seconds = images * seconds_per_image(pipe, steps, guidance)
    log.info("%s: %s%s", folder, "at least " * at_least, cost_line(images, seconds))
    if approve:
        approve(images, seconds)
