"""Detections in images, by a child process.

Importing ultralytics patches Pillow for the whole process and may use the network, so only the child
(`worker`) imports it, with both switched off.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checked import hash_folder
from ..errors import EraseError, SettingError
from ..files import hash_file
from ..json_process import JsonProcess, KeptProcess
from ..run.measurements import Detection
from ..runtime import Progress

MIN_PROBABILITY = 0.1
"""Less probable detections are dropped; every threshold of the rates lies at or above it."""
IOU = 0.45
"""Threshold of non-maximum suppression (YOLOv5's default)."""
MAX_DETECTIONS = 300
"""Per image (ultralytics' default)."""
CHUNK = 64
"""Images opened at a time, and between two reports of progress; no batch is larger."""
CONTAINED = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Environment that keeps ultralytics off the network and from installing packages."""

_kept = KeptProcess()
_keeping = 0
"""How many nested blocks of `detector_kept` the program is in."""


@dataclass(frozen=True, kw_only=True)
class DetectorAnswer:
    """A detector's description and what it detected, image by image."""

    names: tuple[str, ...]
    """All classes of the detector."""
    size: int
    """Side of the square that each image is fitted into, pixels."""
    kind: str
    """Such as "yolov5n anchor-based"."""
    detections: list[tuple[Detection, ...]]
    """Most probable first."""


@contextlib.contextmanager
def detector_kept() -> Iterator[None]:
    """Inside, `detect` keeps its process from call to call, as long as the detector is the same, because
    loading one takes seconds."""
    global _keeping
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping:
            _kept.end()


def detect(
    detector: Path,
    images: Sequence[Path],
    targets: Sequence[str] = (),
    progress: Progress | None = None,
    text_encoder: Path | None = None,
) -> DetectorAnswer:
    """Runs the detector over image files in a child process.

    An open-vocabulary detector gets the `targets` as classes, by its `text_encoder`. Raises ModelError if
    `detector` cannot be loaded, SettingError if it has no class for one of the `targets` (before any
    image is opened), and DataError for an unreadable image.
    """
    detections: list[tuple[Detection, ...]] = []
    with _process(detector, targets, text_encoder) as (process, question):
        for start in range(0, max(1, len(images)), CHUNK):
            some = [str(path) for path in images[start : start + CHUNK]]
            answer = process.ask(question | {"images": some})
            detections += [tuple(map(Detection.of_json, rows)) for rows in answer["detections"]]
            if progress and some:
                progress(len(detections), len(images), "")
    if not _keeping:
        _kept.end()
    return DetectorAnswer(
        names=tuple(answer["names"]),
        size=answer["size"],
        kind=answer["kind"],
        detections=detections,
    )


def start_detector(
    detector: Path, targets: Sequence[str] = (), text_encoder: Path | None = None
) -> None:
    """Starts to load the detector for a later `detect`; useful only in a block of `detector_kept`."""
    with _process(detector, targets, text_encoder):
        pass


@contextlib.contextmanager
def _process(
    detector: Path, targets: Sequence[str], text_encoder: Path | None
) -> Iterator[tuple[JsonProcess, dict[str, Any]]]:
    """The process, which is the kept one if its files are still the same, and a question without images."""
    question = {
        "folder": str(Path.cwd()),  # which the paths are relative to
        "detector": str(detector),
        "text_encoder": None if text_encoder is None else str(text_encoder),
        "targets": list(targets),
    }
    start = functools.partial(
        JsonProcess, "the detector", "erase_sd.detection.worker", question,
        CONTAINED, "YOLO_CONFIG_DIR", field="detector", value=detector,
    )  # fmt: skip
    with _kept.process(tuple(map(_content, (detector, text_encoder))), start) as process:
        yield process, question


def _content(path: Path | None) -> str | None:
    """What tells a detector or text encoder from another one in its place: a hash, or the path of what
    cannot be read."""
    try:
        return text_encoder_hash(path)
    except (EraseError, OSError):
        return str(path)


def text_encoder_hash(path: Path | None) -> str | None:
    """SHA-256 of an open-vocabulary detector's text encoder, a file or a folder; None without one."""
    if path is None:
        return None
    return hash_file(path) if path.is_file() else hash_folder(path, "*.safetensors", "*.json")


def check_class(target: str, names: Sequence[str]) -> None:
    """Raises SettingError, naming similar classes, if `target` is not a class of the detector."""
    if target not in names:
        from difflib import get_close_matches

        similar = get_close_matches(target, names, n=5, cutoff=0.0)
        raise SettingError(
            f"the detector has no such class; similar ones: {', '.join(similar)}",
            field="detector_class",
            value=target,
        )
