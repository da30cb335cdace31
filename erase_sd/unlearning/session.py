"""Everything that the unlearning of one text encoder, or of the U-Net, works with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import runtime
from ..data.concept import Concept
from ..data.dataset import Dataset
from ..data.pair import Split
from ..data.split import ConceptSets
from ..files import write_records
from ..methods.base import Task
from ..models.clip import Clip
from ..models.denoiser import Denoiser, open_denoiser
from ..models.features import readable, report_unreadable
from ..models.pipeline_kinds import TextEncoder
from ..models.towers import LoneTowers
from ..models.unet import UNET
from ..run import Run
from ..run.records import Origin, TrainRecord
from ..sharing import writes
from .captions import TokenizedSets, tokenize_sets
from .checkpoint import Checkpoint, identity_of
from .metrics import ErasureMetrics, OriginalEncodings, encode_originals, erasure_metrics
from .settings import UnlearnSettings
from .student import ClipStudent, UNetStudent
from .unet_metrics import OriginalPredictions, predict_originals, unet_metrics


@dataclass(frozen=True, kw_only=True)
class Session:
    """The student and the original model, the caption pairs, and the files in the run folder."""

    settings: UnlearnSettings
    student: ClipStudent
    original: Clip
    pairs: TokenizedSets
    checkpoint: Checkpoint
    log_path: Path
    denoiser: Callable[[], Denoiser] | None
    """The original pipeline, opened at the first call, frozen; None: a CLIP or BLIP alone."""
    originals: dict[Split, OriginalEncodings] = field(default_factory=dict)
    """The original's encodings of each split that was measured."""
    predictions: dict[Split, OriginalPredictions] = field(default_factory=dict)
    """The original U-Net's predictions of each split that was measured."""

    @property
    def task(self) -> Task:
        """What the method can use before the first step."""
        return Task(
            clip=self.original,
            concepts=tuple(concept.name for concept in self.settings.concepts),
            forget=self.pairs.forget["train"],
            retain=self.pairs.retain["train"],
            seed=self.settings.seed,
            prompts=self.pairs.prompts,
            open_denoiser=self.denoiser,
        )

    def write_log(self, records: Sequence[TrainRecord]) -> None:
        """Writes the validation steps so far."""
        if writes():
            write_records(self.log_path, records)

    def measure(self, split: Split) -> ErasureMetrics:
        """The student's metrics on the captions of a split."""
        forget, retain, student = self.pairs.forget[split], self.pairs.retain[split], self.student
        if isinstance(student, UNetStudent):
            assert self.denoiser is not None
            if split not in self.predictions:
                self.predictions[split] = predict_originals(self.denoiser(), forget, retain)
            return unet_metrics(student.denoiser, self.predictions[split])
        original = self.encoded(split)
        with student.precision():
            return erasure_metrics(student.clip, original)

    def encoded(self, split: Split) -> OriginalEncodings:
        """The original's encodings of the captions of a split."""
        if split not in self.originals:
            with self.student.precision():
                self.originals[split] = encode_originals(
                    self.original, self.pairs.forget[split], self.pairs.retain[split]
                )
        return self.originals[split]


def open_session(
    settings: UnlearnSettings,
    clip: Clip,
    data: Dataset,
    sets: ConceptSets,
    concepts: Sequence[Concept],
    run: Run,
    encoder: TextEncoder,
    started_from: Origin,
) -> Session:
    """Moves the model to the device and tokenizes the caption pairs.

    `concepts` are those of the settings with all of their mentions.
    """
    clip.model.to(runtime.device())
    method = settings.build()
    if settings.towers == "both":  # each step opens images of both sets
        readable(data, [image.image for images in sets.by_split.values() for image in images])
    pairs = tokenize_sets(clip, data, sets, concepts, method.needs)
    report_unreadable(data)
    if settings.towers == "text" and "image_tower" not in method.needs:
        clip.model.vision_model.cpu()  # no longer used, and the text tower needs the memory
    of_unet = method.unlearns == "unet"
    dtype = runtime.dtype(settings.precision)
    denoiser = None
    if not isinstance(encoder, LoneTowers):
        precision = ("fp32", dtype) if of_unet else ()  # trained weights are fp32
        denoiser = functools.cache(lambda: open_denoiser(encoder.folder.parent, *precision))
    student: ClipStudent
    if of_unet:
        assert denoiser  # a CLIP alone is refused before
        module, student = UNET, UNetStudent(clip, denoiser(), dtype, method.trains)
    else:
        module = encoder.name
        student = ClipStudent(clip, settings.towers, dtype, method.needs)
    return Session(
        settings=settings,
        student=student,
        original=clip.copied(image_tower=settings.towers == "both"),
        pairs=pairs,
        checkpoint=Checkpoint(run.checkpoint(module), identity_of(settings, started_from)),
        log_path=run.training_log(module),
        denoiser=denoiser,
    )
