"""Detections in a run's images: those that are known, and new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..detection.detector import (
    CHUNK,
    IOU,
    MAX_DETECTIONS,
    MIN_PROBABILITY,
    DetectorAnswer,
    detect,
    text_encoder_hash,
)
from ..errors import RunError
from ..files import write_records
from ..models.presets import Models
from ..run import Run
from ..run.measurements import DetectionRecord, DetectorRecord
from ..run.records import ImageRecord
from ..runtime import Progress
from ..sharing import each, from_first, place


class Detections:
    """Rows of `detections.jsonl`, by file and hash of the image.

    Rows that are already there count if they were made with the same detector and settings, and if that
    detector knows the `targets`.
    """

    def __init__(self, run: Run, models: Models, targets: Sequence[str]) -> None:
        self.run, self.models, self.targets = run, models, targets
        self._text = text_encoder_hash(models.detector_text_path())
        now = (models.detector_hash(), self._text, IOU, MIN_PROBABILITY, MAX_DETECTIONS)
        self._rows = {
            (row.file, row.sha256): row
            for row in from_first(lambda: _rows_of(run))
            if _shape(row.detector) == now and set(targets) <= set(row.names)
        }
        if len({row.names for row in self._rows.values()}) > 1:
            self._rows.clear()

    def missing(self, images: Sequence[ImageRecord]) -> list[ImageRecord]:
        """The images that have no row."""
        return [image for image in images if (image.file, image.sha256) not in self._rows]

    def of(
        self, images: Sequence[ImageRecord], progress: Progress | None = None
    ) -> list[DetectionRecord]:
        """The images' rows; the detector runs over those that have none.

        A launcher's processes each run it over whole chunks of images.
        """
        while missing := self.missing(images):  # again if earlier rows are dropped
            self._add(missing, progress)
        return [self._rows[image.file, image.sha256] for image in images]

    def write(self, images: Sequence[ImageRecord]) -> None:
        """Writes the images' rows, as far as they are known, to `detections.jsonl`."""
        known = (self._rows.get((image.file, image.sha256)) for image in images)
        write_records(self.run.folder / "detections.jsonl", [row for row in known if row])

    def _add(self, images: Sequence[ImageRecord], progress: Progress | None) -> None:
        """Detects objects in images. Rows with other words of an open vocabulary are dropped, because the
        words compete for each object."""
        named = progress and (lambda done, total, _: progress(done, total, self.run.name))
        files = [self.run.folder / image.file for image in images]
        answer = _detect(files, self.models, self.targets, named)
        detector = DetectorRecord(
            file=self.models.detector_file().name,
            sha256=self.models.detector_hash(),
            kind=answer.kind,
            size=answer.size,
            iou=IOU,
            min_probability=MIN_PROBABILITY,
            max_detections=MAX_DETECTIONS,
            text_encoder_sha256=self._text,
        )
        if any(row.names != answer.names for row in self._rows.values()):
            self._rows.clear()
        for image, detections in zip(images, answer.detections, strict=True):
            self._rows[image.file, image.sha256] = DetectionRecord(
                file=image.file,
                sha256=image.sha256,
                detections=detections,
                names=answer.names,
                detector=detector,
            )


def _detect(
    files: Sequence[Path], models: Models, targets: Sequence[str], progress: Progress | None
) -> DetectorAnswer:
    """The detector's answer for all files; processes in step each run it over whole chunks of them."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    _, count = place()
    shares = [[file for chunk in chunks[n::count] for file in chunk] for n in range(count)]

    def of_share(share: Sequence[Path]) -> DetectorAnswer:
        text_encoder = models.detector_text_path()
        return detect(models.detector_file(), share, targets, progress, text_encoder)

    answers = each(shares, of_share)
    rows = [iter(answer.detections) for answer in answers]
    detections = [next(rows[n % count]) for n, chunk in enumerate(chunks) for _ in chunk]
    return replace(answers[0], detections=detections)


def _rows_of(run: Run) -> list[DetectionRecord]:
    """Rows of `detections.jsonl`; none if the file is damaged, for it can be written anew."""
    try:
        return run.detections()
    except RunError:
        return []


def _shape(detector: DetectorRecord) -> tuple[object, ...]:
    """Everything that shapes the detections in an image."""
    text, limits = detector.text_encoder_sha256, (detector.min_probability, detector.max_detections)
    return detector.sha256, text, detector.iou, *limits
