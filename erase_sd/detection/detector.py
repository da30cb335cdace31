"""Detections in images, by a child process.

Importing ultralytics patches Pillow for the whole process and may use the network, so only the child
(`worker`) imports it, with both switched off.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import errors
from ..checked import hash_folder
from ..child import isolated
from ..errors import ModelError, SettingError
from ..files import hash_file, write_json
from ..reading import read_json, read_record
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
REQUEST, ANSWER, FAILURE = "request.json", "answer.json", "failure.json"
"""Files by which `detect` and its child exchange messages."""


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


def detect(
    detector: Path,
    images: Sequence[Path],
    targets: Sequence[str] = (),
    progress: Progress | None = None,
    text_encoder: Path | None = None,
) -> DetectorAnswer:
    """Runs the detector over image files in a child process.

    An open-vocabulary detector gets the `targets` as classes, by its `text_encoder`. Raises ModelError if `detector` cannot be loaded, SettingError if it has no class for one of the
    `targets` (before any image is opened), and DataError for an unreadable image.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = {
            "detector": str(detector),
            "images": [str(path) for path in images],
            "targets": list(targets),
            "text_encoder": None if text_encoder is None else str(text_encoder),
        }
        write_json(folder / REQUEST, request)
        why = _run_child(folder, len(images), progress)
        if (failure := folder / FAILURE).is_file():
            raise _error_of(failure)
        if not (answer := folder / ANSWER).is_file():
            raise ModelError(
                f"the detector's process failed ({why})", field="detector", value=detector
            )
        return read_record(answer, DetectorAnswer)


def _run_child(folder: Path, total: int, progress: Progress | None) -> str:
    """Runs the worker to its end; returns the last line on its stderr, or its exit status."""
    with (
        (folder / "stderr").open("w+", encoding="utf-8", errors="replace") as stderr,
        subprocess.Popen(  # noqa: S603
            isolated("erase_sd.detection.worker", str(folder)),
            env=os.environ | CONTAINED | {"YOLO_CONFIG_DIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as child,
    ):
        try:
            for line in child.stdout or ():  # the number of images done so far
                if progress and line.strip().isdecimal():
                    progress(int(line), total, "")
            child.wait()
        except BaseException:  # a signal; leaving the block would wait for the child
            child.kill()
            raise
        stderr.seek(0)
        lines = stderr.read().strip().splitlines()
    return lines[-1] if lines else f"exit status {child.returncode}"


def _error_of(failure: Path) -> errors.EraseError:
    """The error that ended the child, of the same class and with the same fields."""
    entry = read_json(failure)
    kind: type[errors.EraseError] = getattr(errors, entry["error"])
    return kind(entry["rule"], field=entry["field"], value=entry["value"])


def failure_of(error: errors.EraseError) -> dict[str, str | None]:
    """An error as plain JSON, for `detect` to raise again."""
    value = None if error.value is None else str(error.value)
    return {
        "error": type(error).__name__, "rule": error.rule, "field": error.field, "value": value,
    }  # fmt: skip


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
