"""The one loop for every method: batches, steps, validation, roll-back, checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import runtime
from ..data.split import Part
from ..errors import DivergedError, RunError
from ..files import read_rows, whole_file, write_rows
from ..methods import Method, Side, World
from ..models.clip import Clip, Encoded, trainable
from ..run import Run
from .batches import Batches
from .captions import Rows
from .metrics import shares
from .settings import Settings

# Of a checkpoint, beside the weights.
STATE = ("step", "good_step", "rate_scale", "stopped", "stage", "left")
Progress = Callable[[int, int, dict[str, float]], None]


class Loop:
    """Batches, steps, validation, roll-back, checkpoints."""

    def __init__(
        self,
        settings: Settings,
        clip: Clip,
        forget: dict[Part, Rows],
        retain: dict[Part, Rows],
        run: Run,
        suffix: str = "",
    ) -> None:
        self.settings, self.clip = settings, clip
        self.device, self.dtype = clip.device, runtime.dtype(settings.dtype)
        self.forget, self.retain = forget, retain
        method = settings.build()
        assert settings.rate and settings.steps  # the method's, where none were given
        self.rate, self.steps = settings.rate, settings.steps
        # What does not train is shared: the image tower of a real CLIP is the larger part of it.
        shared = {} if settings.towers == "both" else {id(v): v for v in (clip.model.vision_model,)}
        self.original = dataclasses.replace(clip, model=copy.deepcopy(clip.model, shared))
        self.batches = Batches(settings, self.original, forget["train"], retain["train"])
        names = tuple(concept.name for concept in settings.concepts)
        self.world = World(self.original, names, forget["train"], retain["train"], settings.seed)
        self.prepared = method.prepare(self.world)
        self.all_parameters = trainable(clip, settings.towers)
        self._begin(0)
        self.checkpoint = run.folder / f"checkpoint{suffix}.safetensors"
        self.log_path = run.folder / f"train{suffix}.jsonl"
        self.log: list[dict[str, Any]] = []
        self.step, self.good_step, self.rate_scale, self.resumed_at = 0, 0, 1.0, 0
        self.left: float | None = None
        self.stopped = "steps"
        self.good = self.weights()

    def _begin(self, stage: int) -> None:
        """Takes up a stage of the method's schedule, with what trains in it and a fresh optimizer."""
        method = self.prepared.at(stage)
        assert method is not None
        self.method: Method = method
        self.stage = stage
        for name, parameter in self.all_parameters.items():
            parameter.requires_grad_(method.trains(name))
            parameter.grad = None
        self.parameters = {n: p for n, p in self.all_parameters.items() if p.requires_grad}
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.rate, betas=(0.9, 0.98))

    @property
    def scale(self) -> float:
        """CLIP's temperature."""
        return float(self.clip.model.logit_scale.exp())

    def text(self, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
        """The student's features and token states of token ids."""
        with self._precision():
            return self.clip.encode_text(ids, unit)

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """The student's features of processed pixels."""
        with self._precision():
            return self.clip.encode_image(pixels, unit)

    def __call__(self, side: Side) -> Encoded:
        """The student's view of one side."""
        ids = side.ids if "states" in self.method.reads else self.clip.cut(side.ids)
        text, states = self.text(ids)
        image = side.original.image if side.pixels is None else self.image(side.pixels)
        return Encoded(text, image, states)

    def weights(self) -> dict[str, Tensor]:
        """A copy of what may train."""
        return {n: p.detach().clone() for n, p in self.all_parameters.items()}

    def train(self, progress: Progress | None) -> None:
        """Steps until the thresholds are met or the steps are used up; ends on good weights."""
        self._resume()
        if (solved := self.prepared.solve(self.world)) is not None:
            self._restore({**self.good, **solved})
            self.stopped, self.good = "solved", self.weights()
            measures = self.measure("validation")
            if not all(map(math.isfinite, measures.values())):
                raise DivergedError("the solution is not finite; nothing is saved")
            write_rows(self.log_path, [{"step": 0, **_validation(measures)}])
            return
        if not self.step:
            self.left = self.prepared.left(self)
        began, start = time.monotonic(), self.step
        while self.step < self.steps and self.stopped == "steps":
            terms = self._take_step()
            if self.stopped != "steps":
                break
            self.step += 1
            if progress:
                progress(self.step, self.steps, terms)
            if self.step % self.settings.validate_every == 0 or self.step == self.steps:
                pace = (time.monotonic() - began) / (self.step - start)
                self._validate(terms, pace)
        self._restore(self.good)
        if not self.good_step:
            runtime.say("every look was rolled back: the weights are still the original's")

    def _take_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            fall = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
            group["lr"] = self.rate * self.rate_scale * min(1.0, (self.step + 1) / 10) * fall
        while True:
            try:
                terms = self._gradients()
                break
            except torch.OutOfMemoryError:
                self.batches.shrink()
        if self.stopped == "steps":
            self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _gradients(self) -> dict[str, Tensor]:
        """Takes the gradients of one batch; returns its terms."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            batch = self.batches.at(self.step, self.steps, self.method.reads)
        # Outside of it: a similarity times CLIP's temperature has no two decimals left in bf16.
        terms = self.method.loss(self, batch)
        loss = torch.stack(list(terms.values())).sum()
        if torch.isfinite(loss):
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._diverge(self.step + 1, f"loss {float(loss.detach())}")
        return terms

    def _diverge(self, step: int, what: str) -> None:
        """Ends on the last weights that passed a look; DivergedError where there are none."""
        where = f"unlearning diverged by step {step} ({what})"
        if not self.good_step:
            raise DivergedError(f"{where}, before a look that was kept; a lower --rate may help")
        self.stopped = "diverged"
        runtime.say(f"{where}; the weights of step {self.good_step} are kept; try a lower --rate")

    def _precision(self) -> torch.autocast:
        """Autocast of the settings' precision, for the passes through the towers; none in float32."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if lower else None, enabled=lower)

    def measure(self, part: Part) -> dict[str, float]:
        """`shares.shares` of one part's captions."""
        with self._precision():
            return shares(self.clip, self.original, self.forget[part], self.retain[part])

    def _validate(self, terms: dict[str, float], pace: float) -> None:
        measures = self.measure("validation")
        if not all(map(math.isfinite, measures.values())):
            self._diverge(self.step, "not finite on the validation captions")
            return
        left, floor = self.method.left(self), self.settings.retain_floor
        rolled_back = floor is not None and measures["retain"] < floor
        if left is not None and self.left is not None:
            rolled_back |= left >= self.left
        self.log.append(
            {"step": self.step, **terms, **_validation(measures),
             **({} if left is None else {"left": left, "stage": self.stage}),
             "rolled_back": rolled_back, "seconds_per_step": round(pace, 4),
             "peak_memory_mb": round(runtime.peak_memory() / 1e6)}
        )  # fmt: skip
        if rolled_back:
            self._restore(self.good)
            self._go_back()
        else:
            self.good, self.good_step, self.left = self.weights(), self.step, left
            if left == 0 or self._enough(measures["forget"]):
                self.stopped = "thresholds"
        self._save()

    def _enough(self, forget: float) -> bool:
        threshold = self.settings.forget_threshold
        return threshold is not None and forget <= threshold and self.step >= self.settings.patience

    def _go_back(self) -> None:
        """After a roll-back: the next stage of the method's schedule, or half the rate."""
        if self.left is None:
            self.optimizer.state.clear()
            self.rate_scale /= 2
        elif self.prepared.at(self.stage + 1) is None:
            self.stopped = "schedule"
        else:
            self._begin(self.stage + 1)

    def _restore(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.all_parameters.items():
                parameter.copy_(weights[name])

    def _save(self) -> None:
        """The good weights, which after a look are also the current ones, and Adam's state."""
        tensors = {f"good.{n}": t for n, t in self.good.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        state = {name: getattr(self, name) for name in STATE} | {"batches": self.batches.sizes}
        write_rows(self.log_path, self.log)
        # Straight from the tensors: those of a large tower are gigabytes.
        with whole_file(self.checkpoint) as file:
            save_file(tensors, file, metadata={"state": json.dumps(state)})

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise RunError(
                f"{self.checkpoint}: damaged ({error}); delete it to begin anew"
            ) from None
        for name in STATE:
            setattr(self, name, state[name])
        self.resumed_at = self.step
        self.batches.sizes = tuple(state["batches"])
        self._begin(self.stage)
        self.good = {n: tensors[f"good.{n}"] for n in self.all_parameters}
        self._restore(self.good)
        for name, parameter in self.parameters.items():
            if f"step.{name}" in tensors:
                # As `Adam.load_state_dict` would: the count of steps stays where it is.
                self.optimizer.state[parameter] = {"step": tensors[f"step.{name}"]} | {
                    key: tensors[f"{key}.{name}"].to(parameter.device)
                    for key in ("exp_avg", "exp_avg_sq")
                }
        self.log = [row for row in read_rows(self.log_path) if row["step"] <= self.step]


def _validation(measures: dict[str, float]) -> dict[str, float]:
    return {f"validation_{name}": value for name, value in measures.items()}
