"""Training of a student on a method's loss: steps, validation, roll-back."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..errors import DivergedError
from ..methods.base import Method
from ..run.records import EncoderResult, TrainRecord
from ..runtime import Progress, log
from ..sharing import any_of
from ..sharing.rows import sum_gradients
from ..termination import deferred
from .batches import Batches
from .checkpoint import Snapshot, TrainerState, seconds_to_write
from .metrics import ErasureMetrics
from .session import Session

WARM_UP = 10
"""Steps over which the learning rate rises."""
SLOW_CHECKPOINT = 0.2
"""Seconds above which writing checkpoints, on a GPU as slow as training, may take only a tenth of the time."""


class Trainer:
    """Trains with Adam on a cosine schedule.

    Every validation is accepted or, if it breaks the retain floor, rolled back to the last accepted
    weights; then a checkpoint is written, and also when a signal ends training.
    """

    def __init__(self, method: Method, session: Session) -> None:
        settings = session.settings
        assert settings.learning_rate and settings.steps  # the method's, if the user set none
        self.learning_rate, self.steps = settings.learning_rate, settings.steps
        self.settings, self.session, self.student = settings, session, session.student
        pairs = session.pairs
        self.batches = Batches(
            settings, session.original, pairs.forget["train"], pairs.retain["train"], pairs.prompts
        )
        self.state = TrainerState(batch_sizes=self.batches.sizes)
        self.resumed_at = 0
        self.log: list[TrainRecord] = []
        self.memory: dict[str, Tensor] = {}
        self.accepted = self.student.weights()
        self.saved_at, self.save_seconds = time.monotonic(), seconds_to_write(self.accepted)
        self.validated = True
        """Whether the current weights are the accepted ones."""
        self.begin(method)

    def begin(self, method: Method) -> None:
        """Continues with `method`: its parameters, and a fresh optimizer."""
        self.method = method
        self.parameters = self.student.train_only(method.trains)
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=self.learning_rate, betas=(0.9, 0.98)
        )

    def train(self, progress: Progress | None = None) -> tuple[dict[str, Tensor], EncoderResult]:
        """The last accepted weights, and how training went.

        Resumes from a checkpoint, and ends when the thresholds are met or the steps are used up.
        Raises DivergedError if training diverges before a validation is accepted.
        """
        self.resume()
        with deferred() as terminated:
            began, first = time.monotonic(), self.state.step
            while (  # several processes end at the same step
                self.state.step < self.steps and not self.state.stopped and not any_of(terminated())
            ):
                self._advance(progress, began, first)
            if terminated() and self.state.step > first:
                self._save()
                log.info("%s: step %d", self.session.checkpoint.path, self.state.step)
        self.student.load(self.accepted)
        if not self.state.accepted_step:
            log.warning("every validation was rolled back: the weights are still the original's")
        return self.accepted, EncoderResult(
            steps=self.state.step,
            stopped=self.state.stopped or "steps",
            resumed_at=self.resumed_at,
            batch_sizes=self.batches.sizes,
            dtype=self.student.dtype_name,
            held_out=dataclasses.asdict(self.session.measure("held-out")),
        )

    def _advance(self, progress: Progress | None, began: float, first: int) -> None:
        """Takes a step, and validates if it is due; training `began` at the step `first`, seconds."""
        terms = self._take_step()
        if self.state.stopped:
            return
        self.state.step += 1
        self.validated, step = False, self.state.step
        if progress:
            progress(step, self.steps, " ".join(f"{n} {v:.3f}" for n, v in terms.items()))
        if step % self.settings.validate_every == 0 or step == self.steps:
            self._validate(terms, (time.monotonic() - began) / (step - first))

    def accepts(self, metrics: ErasureMetrics) -> bool:
        """Whether the weights are kept after a validation."""
        floor = self.settings.retain_floor
        return floor is None or metrics.retained_fidelity >= floor

    def accept(self, metrics: ErasureMetrics) -> None:
        """Keeps the weights, and stops if the concept is erased."""
        self.accepted, self.state.accepted_step = self.student.weights(), self.state.step
        threshold = self.settings.forget_threshold
        if (
            threshold is not None
            and metrics.residual_concept_similarity <= threshold
            and self.state.step >= self.settings.min_steps
        ):
            self.state.stopped = "thresholds"

    def adjust(self) -> None:
        """After a roll-back: clears the optimizer and halves the learning rate."""
        self.optimizer.state.clear()
        self.state.learning_rate_scale /= 2

    def schedule(self) -> dict[str, Any]:
        """What only a staged method's rows in `train.jsonl` have."""
        return {}

    def scheduled(self) -> Method:
        """The method to train with in the current state."""
        return self.method

    def resume(self) -> None:
        """Restores the checkpoint, if there is one."""
        if (snapshot := self.session.checkpoint.load()) is None:
            return
        self.state, self.resumed_at = snapshot.state, snapshot.state.step
        self.batches.sizes = self.state.batch_sizes
        self.begin(self.scheduled())
        self.accepted = {name: snapshot.accepted[name] for name in self.student.parameters}
        self.student.load({**self.accepted, **snapshot.current})
        self.validated = not snapshot.current
        for name, parameter in self.parameters.items():
            if adam := snapshot.adam(name, parameter.device):
                self.optimizer.state[parameter] = adam
        self.memory = {name: t.to(runtime.device()) for name, t in snapshot.memory.items()}
        self.log = list(snapshot.log)
        self.session.write_log(self.log)

    def _take_step(self) -> dict[str, float]:
        step = self.state.step
        for group in self.optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            peak = self.learning_rate * self.state.learning_rate_scale
            group["lr"] = peak * min(1.0, (step + 1) / WARM_UP) * cosine
        while True:
            try:
                terms = self._backward()
                break
            except Exception as error:
                if not runtime.is_out_of_memory(error):
                    raise
            self.batches.shrink(self.student)  # not in the handler, which holds the pass's tensors
        if not self.state.stopped:
            self.optimizer.step()
        return terms

    def _backward(self) -> dict[str, float]:
        """Computes the gradients of one batch, and returns its terms."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.student.precision():
            batch = self.batches.at(self.state.step, self.steps, self.method.needs, self.memory)
        terms: dict[str, float] = {}
        # In float32: a similarity times CLIP's temperature keeps no decimals in bf16.
        parts = self.method.loss(self.student, batch)
        for part in (parts,) if isinstance(parts, dict) else parts:
            loss = (values := torch.stack(list(part.values()))).sum()
            *numbers, total = torch.cat([values, loss[None]]).tolist()  # each copy waits for a GPU
            if not math.isfinite(total):
                self._diverge(self.state.step + 1, f"loss {total}")
                break
            loss.backward()  # type: ignore[no-untyped-call]
            terms |= dict(zip(part, numbers, strict=True))
        else:
            sum_gradients(self.parameters.values())
            self.memory = batch.memory  # not before: a step that runs out of memory is repeated
        return terms

    def _validate(self, terms: dict[str, float], seconds_per_step: float) -> None:
        if not (metrics := self.session.measure("validation")).finite:
            self._diverge(self.state.step, "validation metrics are not finite")
            return
        accepted = self.accepts(metrics)
        self.log.append(
            TrainRecord(
                step=self.state.step, terms=terms, **dataclasses.asdict(metrics),
                rolled_back=not accepted, seconds_per_step=round(seconds_per_step, 4),
                peak_memory_mb=round(runtime.peak_memory() / 1e6), **self.schedule(),
            )
        )  # fmt: skip
        if accepted:
            self.accept(metrics)
        else:
            self.student.load(self.accepted)
            self.adjust()
        self.validated = True
        self.session.write_log(self.log)
        fast = self.save_seconds < SLOW_CHECKPOINT
        if fast or time.monotonic() > self.saved_at + 10 * self.save_seconds:
            self._save()

    def _diverge(self, step: int, why: str) -> None:
        """Stops at the last accepted weights; DivergedError if there are none."""
        message = f"training diverged at step {step} ({why})"
        if not self.state.accepted_step:
            raise DivergedError(
                f"{message}, before any validation was accepted; try a lower learning rate"
            )
        self.state.stopped = "diverged"
        log.warning(
            "%s; the weights of step %d are kept; try a lower learning rate",
            message, self.state.accepted_step,
        )  # fmt: skip

    def _save(self) -> None:
        """Writes the checkpoint."""
        self.state.batch_sizes = self.batches.sizes
        began = time.monotonic()
        adam = self.optimizer.state
        optimizer = {name: adam[p] for name, p in self.parameters.items() if p in adam}
        self.session.checkpoint.save(
            Snapshot(
                state=self.state,
                accepted=self.accepted,
                current={} if self.validated else self.student.weights(),
                optimizer=optimizer,
                memory=self.memory,
                log=tuple(self.log),
            )
        )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - began
