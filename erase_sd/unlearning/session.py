"""Everything that the unlearning of one text encoder works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import runtime
from ..data.flickr30k import Dataset
from ..data.pair import Split
from ..data.split import ConceptSets
from ..methods.base import Task
from ..models.clip import Clip
from ..models.features import readable, report_unreadable
from ..models.text_encoder import TextEncoder
from ..run import Run
from ..run.records import Origin
from .captions import TokenizedSets, tokenize_sets
from .checkpoint import Checkpoint, identity_of
from .metrics import ErasureMetrics, erasure_metrics
from .settings import UnlearnSettings
from .student import ClipStudent, original_of


@dataclass(frozen=True, kw_only=True)
class Session:
    """The student and the original model, the caption pairs, and the files in the run folder."""

    settings: UnlearnSettings
    student: ClipStudent
    original: Clip
    pairs: TokenizedSets
    checkpoint: Checkpoint
    log_path: Path

    @property
    def task(self) -> Task:
        """What the method can use before the first step."""
        return Task(
            clip=self.original,
            concepts=tuple(concept.name for concept in self.settings.concepts),
            forget=self.pairs.forget["train"],
            retain=self.pairs.retain["train"],
            seed=self.settings.seed,
        )

    def measure(self, split: Split) -> ErasureMetrics:
        """The student's metrics on the captions of a split."""
        with self.student.precision():
            return erasure_metrics(
                self.student.clip, self.original, self.pairs.forget[split], self.pairs.retain[split]
            )


def open_session(
    settings: UnlearnSettings,
    clip: Clip,
    data: Dataset,
    sets: ConceptSets,
    run: Run,
    encoder: TextEncoder,
    started_from: Origin,
) -> Session:
    """Moves the model to the device and tokenizes the caption pairs."""
    clip.model.to(runtime.device())
    needs = settings.build().needs
    if settings.towers == "both":  # each step opens images of both sets
        readable(data, [image.image for images in sets.by_split.values() for image in images])
    pairs = tokenize_sets(clip, data, sets, settings.concepts, needs)
    report_unreadable(data)
    if settings.towers == "text" and "image_tower" not in needs:
        clip.model.vision_model.cpu()  # no longer used, and the text tower needs the memory
    suffix = encoder.name.removeprefix("text_encoder")
    return Session(
        settings=settings,
        student=ClipStudent(clip, settings.towers, runtime.dtype(settings.dtype), needs),
        original=original_of(clip, settings.towers),
        pairs=pairs,
        checkpoint=Checkpoint(
            run.folder / f"checkpoint{suffix}.safetensors", identity_of(settings, started_from)
        ),
        log_path=run.training_log(encoder.name),
    )
