"""What a preset takes on this machine: unlearning, closed form, images, memory, share of the card."""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..data.concept import Concept
from ..methods.base import Task
from ..methods.projection import Projection
from ..models.clip import Clip, trainable
from ..unlearning.checkpoint import Checkpoint
from ..unlearning.session import Session
from ..unlearning.settings import UnlearnSettings
from ..unlearning.student import ClipStudent
from ..unlearning.trainer import Trainer
from .figures import Figures, timed
from .full_size import TOWERS, random_clip, random_pairs
from .graphs import replay, replay_with_fused_adam
from .image_speed import ImageSpeed

CAPTIONS = 145_000
"""Captions of an epoch: those of Flickr30K's training images."""


@dataclass
class Bench:
    """Times one preset."""

    preset: str
    small: bool
    seconds: float
    """Time for all of it."""
    only: Sequence[str] = ()
    """Words of the names of the sections to run, if not all."""
    figures: Figures = field(init=False)

    def __post_init__(self) -> None:
        self.figures = Figures(self.small, self.seconds, self.only)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All figures so far, and what failed or was skipped."""
        return self.figures.rows

    def run(self) -> None:
        """All sections, the most important first; exits with an error at the end if one failed."""
        if self.preset == "sdxl":
            self.figures.section("unlearning of both encoders", self.unlearn)
        else:
            self.figures.section("matrix product", self.matmul)
            self.figures.section("unlearning", self.unlearn)
            self.figures.section("closed form", self.closed_form, needs=10)
            ImageSpeed(self.figures).run()
            if self.figures.on_card:  # last: a failed capture may spoil what comes after it
                self.figures.section("unlearning with CUDA graphs", self.graphs, needs=30)
        if self.figures.failed:
            sys.exit(f"failed: {'; '.join(self.figures.failed)}")
        if not self.rows:
            sys.exit(
                f"no section of {self.preset} on this device is named {' or '.join(self.only)}"
            )

    def matmul(self) -> None:
        """The device's own rate for a bf16 matrix product: seconds of it, as a card slows down when hot."""
        size, repeats = (512, 3) if self.figures.brief else (8192, 2000)
        a, b = (
            torch.randn(size, size, device=runtime.device(), dtype=torch.bfloat16)
            for _ in range(2)
        )  # fmt: skip
        rate = 2 * size**3 / timed(lambda: a @ b, repeats, warm=repeats // 2)
        self.figures.matrix_rate = rate
        self.figures.add("bf16 matrix product", rate / 1e12, "TFLOP/s", size=size)

    def unlearn(self) -> None:
        """Unlearning on hidden-state losses, by encoder: an erasure, its steps, and an epoch of these."""
        large = self.preset == "sdxl"
        for number in range(len(TOWERS[self.preset])):
            clip = random_clip(self.preset, number, self.small)
            about = {"encoder": number + 1} if large else {}
            if self.figures.brief:
                self._train(clip, 2, 4, 3, about)
            else:
                self._train(clip, 48, 96, 40 if large else 120, about)
            if not (large or self.figures.brief):
                self._train(clip, 192, 384, 20, about)  # larger batches than the default

    def graphs(self) -> None:
        """Unlearning from the same weights with layers that are launched, or replayed as CUDA graphs, and
        by how much the resulting weights differ."""
        forget, retain, steps = (2, 4, 3) if self.figures.brief else (48, 96, 60)
        clip = random_clip("sd15", 0, self.small)
        start = trainable(clip, "text")
        ends: dict[str, dict[str, Tensor]] = {}
        for layers, prepare in {
            "launched": None, "replayed": replay, "replayed, fused Adam": replay_with_fused_adam,
        }.items():  # fmt: skip
            student = clip.copied(image_tower=False)
            ends[layers] = self._train(student, forget, retain, steps, {"layers": layers}, prepare)
        for layers in ("replayed", "replayed, fused Adam"):
            apart, moved = (
                sum(float((ends[layers][n] - other[n]).square().sum()) for n in start) ** 0.5
                for other in (ends["launched"], start)
            )
            self.figures.add(
                "difference of the weights", apart / moved, "of their change", layers=layers
            )

    def _train(
        self,
        clip: Clip,
        forget: int,
        retain: int,
        steps: int,
        about: dict[str, Any],
        prepare: Callable[[Trainer], None] | None = None,
    ) -> dict[str, Tensor]:
        """Adds the figures of a training, which `prepare` is part of, and returns its weights."""
        about = about | {"forget": forget, "retain": retain}
        with training(clip, forget, retain, steps, brief=self.figures.brief) as trainer:
            ends: list[float] = []

            def train() -> None:
                if prepare:
                    prepare(trainer)
                trainer.train(lambda *_: ends.append(time.perf_counter()))

            whole = timed(train)
        times = [after - before for before, after in itertools.pairwise(ends)]
        step = statistics.median(times[steps // 5 :])  # with a validation only every 20 steps
        add = self.figures.add
        add("training with validation and checkpoints", whole, "s", steps=steps, **about)
        add("a step of unlearning", step, "s", **about)
        add(f"an epoch over {CAPTIONS:,} captions", CAPTIONS / retain * step, "s", **about)
        return trainer.student.weights()

    def closed_form(self) -> None:
        """Seconds of the projection's solution for more and more concepts."""
        clip = random_clip("sd15", 0, self.small)
        for concepts in (1, 10, 100):
            captions = 16 if self.figures.brief else max(500, 20 * concepts)
            pairs = random_pairs(clip, captions, captions)
            names = tuple(f"concept {n}" for n in range(concepts))
            task = Task(clip, names, pairs.forget["train"], pairs.retain["train"], seed=0)
            method = Projection(captions=captions)
            seconds = timed(lambda m=method, t=task: m.solve(t))  # type: ignore[misc]
            about = {"concepts": concepts, "captions": 2 * captions}
            self.figures.add("closed form", seconds, "s", **about)


@contextmanager
def training(clip: Clip, forget: int, retain: int, steps: int, brief: bool) -> Iterator[Trainer]:
    """A trainer that is ready for its first step, as `erase-sd unlearn` has it, in a temporary folder."""
    settings = UnlearnSettings(
        concepts=(Concept("apple"),), steps=steps, forget_batch=forget, retain_batch=retain,
        # Random weights stay nearly the same, so that nothing is rolled back and no threshold is met.
        retain_floor=0.0, min_steps=steps, learning_rate=1e-6,
    )  # fmt: skip
    method = settings.build()
    with runtime.deterministic(), tempfile.TemporaryDirectory() as folder:
        session = Session(
            settings=settings,
            student=ClipStudent(clip, "text", runtime.dtype(settings.precision), method.needs),
            original=clip.copied(image_tower=False),
            pairs=random_pairs(clip, 2_000, *((2_000, 64) if brief else (CAPTIONS, 512))),
            checkpoint=Checkpoint(Path(folder, "checkpoint.safetensors"), {}),
            log_path=Path(folder, "train.jsonl"),
            denoiser=None,
        )
        yield Trainer(method, session)  # type: ignore[arg-type]
