"""What PNG and detection add to the time of generating images, beside it and after it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ..data.images import png_of
from ..detection.detector import detect, detector_kept
from ..files import write_bytes
from ..generation.write_behind import WriteBehind
from ..models.presets import resolve
from .figures import timed

Generate = Callable[[], list[Image]]
WAYS = ("nothing", "PNG in turn", "PNG in a thread", "PNG in a thread, detection ahead")
"""What the loop does beside generating images."""


def loop_seconds(generate: Generate, batches: int) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yields what was timed, its seconds per image, and details: PNG, detection, then loops over `batches`.

    Random weights generate other images than trained ones, so that the size of their files is a detail.
    The detector is the miniature world's: yolov5n at 128 px.
    """
    with detector_kept(), tempfile.TemporaryDirectory() as name:
        folder, images = Path(name), generate()
        files = write_pngs(images, folder, 0)
        size = sum(file.stat().st_size for file in files) / len(files)
        about = {"px": images[0].width, "kB": round(size / 1e3)}
        png = timed(lambda: write_pngs(images, folder, 0), 3)
        yield "PNG", png / len(images), about
        yield "detection", timed(lambda: find_objects(files), 3, warm=1) / len(images), {}
        for way in WAYS:
            loop = functools.partial(produce, generate, batches, folder, way)
            yield "generate loop", timed(loop) / len(images) / batches, {"with": way}


def produce(generate: Generate, batches: int, folder: Path, way: str) -> None:
    """Generates the batches, as the generate stage does, and ends when all is written and detected."""
    with ExitStack() as stack:
        detection, writer = (stack.enter_context(WriteBehind(n)) for n in (batches, 1))

        def write(number: int, images: Sequence[Image]) -> None:
            files = write_pngs(images, folder, number)
            if "detection" in way:
                detection.add(functools.partial(find_objects, files))

        for number in range(batches):
            images = generate()
            if "thread" in way:
                writer.add(functools.partial(write, number, images))
            elif "PNG" in way:
                write(number, images)


def write_pngs(images: Sequence[Image], folder: Path, number: int) -> list[Path]:
    """Writes a batch of images, and returns their files."""
    files = [folder / f"{number}-{place}.png" for place in range(len(images))]
    for file, image in zip(files, images, strict=True):
        write_bytes(file, png_of(image))
    return files


def find_objects(files: Sequence[Path]) -> None:
    """Runs the detector over images, in its own process."""
    detect(resolve().detector_file(), files)
