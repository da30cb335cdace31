"""Detects objects in a run's finished images while others are still being generated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..detection.detector import CHUNK, detector_kept, start_detector
from ..errors import EraseError
from ..models.presets import Models
from ..models.recorded import models_of_run
from ..run import Run
from .classes import classes_of
from .detections import Detections


class DetectionAhead:
    """Detects objects in the images of a run that another process generates.

    The detector starts to load at once, unless the run is already scored. On a CPU, whose cores are busy
    with the U-Net, nothing more is done; on another `device`, `detect_new` also runs it over images. Errors
    are left to the score stage, which meets and reports them again.
    """

    def __init__(
        self, run: Run, models: Models, detector_class: Sequence[str], device: str
    ) -> None:
        classes = classes_of(run.unlearned().concepts, detector_class)
        self.run, self.images = run, run.folder / "images.jsonl"
        self._detections = Detections(run, models, list(classes.values()))
        self._read_at = 0
        """Time of the last change of `images.jsonl` that was read, ns."""
        self._added, self._ended = False, device == "cpu"
        if run.status("score") != "done":
            start_detector(
                models.detector_file(), list(classes.values()), models.detector_text_path()
            )

    def detect_new(self) -> None:
        """Detects objects in the next chunk of recorded images, once there are enough to fill it."""
        if self._ended or not self.images.is_file():
            return
        try:
            changed = self.images.stat().st_mtime_ns
            if changed == self._read_at:
                return
            missing = self._detections.missing(self.run.images())
            if len(missing) >= CHUNK:
                self._detections.of(missing[:CHUNK])
                self._added = True
            else:
                self._read_at = changed
        except (EraseError, OSError):
            self._ended = True

    def write(self) -> None:
        """Writes what was detected, for the score stage, once the images are complete."""
        if self._added and not self._ended:
            with self.run.lock():
                self._detections.write(self.run.images())


@contextlib.contextmanager
def detecting_ahead(
    folder: Path, device: str, detector_class: Sequence[str], **sources: Any
) -> Iterator[DetectionAhead]:
    """Inside, the images of the run in `folder` can be detected in while others are generated on `device`.

    The detector is kept until the end of the block. `sources` are arguments of `models_of_run`.
    """
    run = Run(folder)
    with detector_kept():
        yield DetectionAhead(run, models_of_run(run, **sources), detector_class, device)
