"""Everything that a report shows of a run folder, and what in it is missing or damaged."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..attacks.settings import is_recorded
from ..data.coco import LOOK_ALIKES
from ..data.concept import Concept
from ..errors import RunError
from ..run import Run
from ..run.folder import STAGES
from ..run.measurements import AttacksRecord, DetectionRecord, ScoresRecord
from ..run.records import (
    ErasureRecord,
    ImageRecord,
    RunRecord,
    StageName,
    StageRecord,
    TrainRecord,
    Variant,
)
from ..scoring.rates import THRESHOLD

T = TypeVar("T")

SHOWN_VARIANTS: tuple[Variant, ...] = ("original", "erased")
MODULES = ("text_encoder", "text_encoder_2", "unet")


@dataclass
class ReportData:
    """The contents of a run folder; whatever cannot be read stays empty and is named in `missing`."""

    run: Run
    record: RunRecord
    images: list[ImageRecord] = field(default_factory=list)
    """Images of the original and the erased model, without the reference."""
    detections: dict[tuple[str, str], DetectionRecord] = field(default_factory=dict)
    """By file and by the SHA-256 of the image that the detector saw."""
    scores: ScoresRecord | None = None
    attacks: AttacksRecord | None = None
    """None if the run has not been attacked."""
    training: dict[str, list[TrainRecord]] = field(default_factory=dict)
    """Validation steps by text encoder; of a U-Net as `unet`."""
    erasure: ErasureRecord | None = None
    missing: list[str] = field(default_factory=list)
    """One line per file that is missing or damaged, or stage that is not done."""

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The erased concepts; empty before unlearning has begun."""
        unlearn = self.record.stages.unlearn
        return unlearn.concepts if unlearn else ()

    @property
    def title(self) -> str:
        """Names of the concepts, or of the run if there are none yet."""
        return ", ".join(concept.name for concept in self.concepts) or self.run.name

    @property
    def threshold(self) -> float:
        """Lowest probability of a detection that counts."""
        return self.scores.threshold if self.scores else THRESHOLD

    def stage(self, name: StageName) -> StageRecord | None:
        """A stage's entry in `run.json`; None if it has not begun."""
        entry: StageRecord | None = getattr(self.record.stages, name)
        return entry

    def detector_class(self, concept: str) -> str:
        """The detector's class for a concept, as recorded by `score`."""
        score = self.record.stages.score
        return score.classes.get(concept, concept) if score else concept

    def look_alikes(self, concept: str) -> list[str]:
        """The classes that are easily mistaken for a concept."""
        own = self.detector_class(concept)
        similar = {name for group in LOOK_ALIKES if own in group for name in group}
        return sorted(similar - {own})


def read_report_data(run: Run) -> ReportData:
    """Reads everything that the report shows. Raises RunError if the folder is not a run."""
    data = ReportData(run, run.record)
    data.missing += _next_stage(data)
    unlearn, generate, score = (data.stage(name) for name in STAGES)
    if unlearn:
        _read_unlearning(data)
    if generate:
        images = _read_rows(data, "images.jsonl", run.images)
        data.images = [image for image in images if image.variant in SHOWN_VARIANTS]
    if score:
        rows = _read_rows(data, "detections.jsonl", run.detections)
        data.detections = {(row.file, row.sha256): row for row in rows}
        if score.status == "done":
            data.scores = _read(data, run.scores)
            data.attacks = _read(data, lambda: _attacks_of(data))
    return data


def _attacks_of(data: ReportData) -> AttacksRecord | None:
    """The attacks, whose rates stand beside the scores'; RunError if another detector judged
    them, or the same one by another class or text encoder."""
    attacks = data.run.attacks()
    detectors = data.scores.detectors if data.scores else ()
    if not attacks or not detectors:
        return attacks
    if attacks.detector_sha256 not in {d.sha256 for d in detectors}:
        theirs = f"{attacks.detector} (sha256 {attacks.detector_sha256[:12]})"
        own = f"{detectors[0].file} (sha256 {detectors[0].sha256[:12]})"
        raise RunError(
            f"attacks.json: made with the detector {theirs}, the scores with {own}; attack again "
            "with the same"
        )
    text = detectors[0].text_encoder_sha256
    for row in attacks.rows:
        judge = {"detector_class": data.detector_class(row.concept), "detector_text_sha256": text}
        if not is_recorded(judge, row.settings):
            raise RunError(
                f"attacks.json: {row.concept}: judged with another detector class or text encoder "
                f"than the scores (class {judge['detector_class']}); attack again with the same"
            )
    return attacks


def _next_stage(data: ReportData) -> list[str]:
    """A line about the first stage that is not done, with the command that runs it."""
    pending = {
        "unlearn": ("Not unlearned yet", " --concept …"),
        "generate": ("No images generated yet", " --prompts …"),
        "score": ("Not scored yet", ""),
    }
    for name, (missing, options) in pending.items():
        entry = getattr(data.record.stages, name)
        command = f"erase-sd {name}{options} --run {data.run.folder}"
        if entry is None:
            return [f"{missing} ({command})"]
        if entry.status == "running":
            return [f"{name} is still running, or was interrupted ({command})"]
    return []


def _read_unlearning(data: ReportData) -> None:
    run, unlearn = data.run, data.record.stages.unlearn
    assert unlearn is not None
    finished = list(unlearn.encoders) or ["text_encoder"]
    for encoder in MODULES:
        log = run.training_log(encoder)
        if encoder in finished or log.is_file():
            rows = _read_rows(data, log.name, functools.partial(run.training, encoder))
            if rows:
                data.training[encoder] = rows
    if unlearn.unreadable_images:
        count, first = len(unlearn.unreadable_images), unlearn.unreadable_images[0]
        data.missing.append(f"{count} unreadable images were left out of unlearning, first {first}")
    if unlearn.status == "done":
        data.erasure = _read(data, run.erasure)


def _read_rows(data: ReportData, name: str, read: Callable[[], list[T]]) -> list[T]:
    rows = _read(data, read)
    if rows == []:
        data.missing.append(f"{name}: missing or empty")
    return rows or []


def _read(data: ReportData, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except RunError as error:
        data.missing.append(str(error).replace(f"{data.run.folder}{os.sep}", ""))
        return None
