"""Everything that the unlearning of one text encoder works with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import runtime
from ..data.concept import Concept
from ..data.dataset import Dataset
from ..data.pair import Split
from ..data.split import ConceptSets
from ..methods.base import Task
from ..models.clip import Clip
from ..models.denoiser import open_denoiser
from ..models.features import readable, report_unreadable
from ..models.text_encoder import TextEncoder
from ..models.towers import LoneTowers
from ..run import Run
from ..run.records import Origin
from .captions import TokenizedSets, tokenize_sets
from .checkpoint import Checkpoint, identity_of
from .metrics import ErasureMetrics, OriginalEncodings, encode_originals, erasure_metrics
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
    pipeline: Path | None
    """The diffusers folder whose text encoder is unlearned; None: a CLIP or BLIP alone."""
    originals: dict[Split, OriginalEncodings] = field(default_factory=dict)
    """The original's encodings of each split that was measured."""

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
            open_denoiser=None
            if self.pipeline is None
            else functools.partial(open_denoiser, self.pipeline),
        )

    def measure(self, split: Split) -> ErasureMetrics:
        """The student's metrics on the captions of a split."""
        with self.student.precision():
            if split not in self.originals:
                self.originals[split] = encode_originals(
                    self.original, self.pairs.forget[split], self.pairs.retain[split]
                )
            return erasure_metrics(self.student.clip, self.originals[split])


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
    needs = settings.build().needs
    if settings.towers == "both":  # each step opens images of both sets
        readable(data, [image.image for images in sets.by_split.values() for image in images])
    pairs = tokenize_sets(clip, data, sets, concepts, needs)
    report_unreadable(data)
    if settings.towers == "text" and "image_tower" not in needs:
        clip.model.vision_model.cpu()  # no longer used, and the text tower needs the memory
    alone = isinstance(encoder, LoneTowers)
    suffix = "" if alone else encoder.name.removeprefix("text_encoder")
    return Session(
        settings=settings,
        student=ClipStudent(clip, settings.towers, runtime.dtype(settings.dtype), needs),
        original=original_of(clip, settings.towers),
        pairs=pairs,
        checkpoint=Checkpoint(
            run.folder / f"checkpoint{suffix}.safetensors", identity_of(settings, started_from)
        ),
        log_path=run.training_log(encoder.name),
        pipeline=None if alone else encoder.folder.parent,
    )
