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
from safetensors.torch import save
from torch import Tensor

from . import runtime
from .encoders import Clip, Encoded, trainable
from .errors import DivergedError, ModelError, RunError
from .files import read_rows, write_bytes, write_rows
from .methods import Batch, Reduced, Side
from .pairs.split import Part
from .rows import Rows
from .rundir import Run
from .settings import Settings

STATE = ("step", "rate_scale", "stopped", "forget_batch", "retain_batch")  # of a checkpoint
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
        self.forget_batch, self.retain_batch = settings.forget_batch, settings.retain_batch
        self.forget, self.retain = forget, retain
        self.method = settings.build()
        self.rate = settings.rate or self.method.rate
        # What does not train is shared: the image tower of a real CLIP is the larger part of it.
        shared = {} if settings.towers == "both" else {id(v): v for v in (clip.model.vision_model,)}
        self.original = dataclasses.replace(clip, model=copy.deepcopy(clip.model, shared))
        self.parameters = trainable(clip, settings.towers)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.rate, betas=(0.9, 0.98))
        self.checkpoint = run.folder / f"checkpoint{suffix}.safetensors"
        self.log_path = run.folder / f"train{suffix}.jsonl"
        self.log: list[dict[str, Any]] = []
        self.step, self.rate_scale = 0, 1.0
        self.stopped = "steps"
        self.good = self.weights()

    @property
    def scale(self) -> float:
        """CLIP's temperature."""
        return float(self.clip.model.logit_scale.exp())

    def __call__(self, side: Side) -> Encoded:
        """The student's view of one side."""
        text, states = self.clip.encode_text(side.ids)
        image = side.original.image if side.pixels is None else self.clip.encode_image(side.pixels)
        return Encoded(text, image, states)

    def weights(self) -> dict[str, Tensor]:
        """A copy of what trains."""
        return {n: p.detach().clone() for n, p in self.parameters.items()}

    def train(self, progress: Progress | None) -> None:
        """Steps until the thresholds are met or the steps are used up; ends on good weights."""
        settings = self.settings
        self._resume()
        began, start = time.monotonic(), self.step
        while self.step < settings.steps and self.stopped == "steps":
            terms = self._take_step()
            self.step += 1
            if progress:
                progress(self.step, settings.steps, terms)
            if self.step % settings.validate_every == 0 or self.step == settings.steps:
                pace = (time.monotonic() - began) / (self.step - start)
                self._validate(terms, pace)
        self._restore(self.good)

    def _take_step(self) -> dict[str, float]:
        done = self.step / self.settings.steps
        for group in self.optimizer.param_groups:
            fall = 0.5 * (1 + math.cos(math.pi * done))
            group["lr"] = self.rate * self.rate_scale * min(1.0, (self.step + 1) / 10) * fall
        while True:
            try:
                terms = self._gradients()
                break
            except torch.OutOfMemoryError:
                self._shrink()
        self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _gradients(self) -> dict[str, Tensor]:
        """Takes the gradients of one batch; returns its terms."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            terms = self.method.loss(self, self._batch())
            loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            self._restore(self.good)
            raise DivergedError(
                f"unlearning diverged at step {self.step + 1} (loss {float(loss.detach())}); "
                "a lower --rate may help"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return terms

    def _shrink(self) -> None:
        """Halves the batches after memory ran out; ModelError where they are the smallest."""
        forget, retain = self.forget_batch // 2, self.retain_batch // 2
        if forget < 1 or retain < 2:  # a contrastive term needs two
            raise ModelError("out of memory with the smallest batches; needs a larger device")
        self.forget_batch, self.retain_batch = forget, retain
        runtime.free_memory()
        runtime.say(f"out of memory; goes on with {forget} forget and {retain} retain captions")

    def _batch(self) -> Batch:
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + self.step)
        forget, retain = self.forget["train"], self.retain["train"]
        f = torch.randint(len(forget), (self.forget_batch,), generator=generator)
        r = torch.randperm(len(retain), generator=generator)[: self.retain_batch]
        reduced = Reduced(torch.empty(0), torch.empty(0))
        if "states" in self.method.reads:
            states = self._states(forget.reduced_ids[f])
            index = forget.source[f][:, :, None].expand_as(states).to(self.device)
            reduced = Reduced(states.gather(1, index), forget.mask[f].to(self.device))
        return Batch(self._side(forget, f, False), self._side(retain, r, True), reduced)

    def _side(self, rows: Rows, picked: Tensor, states: bool) -> Side:
        ids = rows.ids[picked]
        then = self._states(ids) if states and "states" in self.method.reads else torch.empty(0)
        pixels = None
        if self.settings.towers == "both":
            pixels = self.clip.pixels([rows.paths[i] for i in picked.tolist()])
        text, image = rows.text[picked].to(self.device), rows.image[picked].to(self.device)
        return Side(ids, Encoded(text, image, then), pixels)

    def _precision(self) -> torch.autocast:
        """Autocast of the settings' precision; none in float32."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if lower else None, enabled=lower)

    def _states(self, ids: Tensor) -> Tensor:
        """The original's token states."""
        with torch.no_grad():
            return self.original.encode_text(ids)[1]

    def measure(self, part: Part, most: int = 512) -> dict[str, float]:
        """The concept's remaining share and the kept share, of one part's captions.

        forget: how much closer a caption with the concept is to its image than the same caption
        without it, as a share of what that was originally; 1 untouched, 0 gone, below 0 repelled.
        retain: 1 - squared change of the retain captions' token states over their variance.
        """
        forget, retain = self.forget[part], self.retain[part]
        mentions = torch.nonzero(forget.mask.sum(1)).flatten()[:most]
        if not len(mentions):
            raise RunError(f"no {part} caption mentions the concept by name; needs more pairs")
        others = torch.linspace(0, len(retain) - 1, min(most, len(retain))).long()
        with torch.no_grad(), self._precision():
            now, _ = self.clip.encode_texts(forget.ids[mentions])
            without_it, _ = self.original.encode_texts(forget.reduced_ids[mentions])
            image, before = (t[mentions].to(self.device) for t in (forget.image, forget.text))
            base = (image * without_it).sum(-1).mean()
            left = ((image * now).sum(-1).mean() - base) / ((image * before).sum(-1).mean() - base)
            _, then = self.original.encode_texts(retain.ids[others])
            _, after = self.clip.encode_texts(retain.ids[others])
            kept = 1 - (after - then).square().mean() / (then - then.mean(0)).square().mean()
        return {"forget": float(left), "retain": float(kept)}

    def _validate(self, terms: dict[str, float], pace: float) -> None:
        settings, measures = self.settings, self.measure("validation")
        if not all(map(math.isfinite, measures.values())):
            self._restore(self.good)
            raise DivergedError(f"unlearning diverged by step {self.step}; a lower --rate may help")
        rolled_back = measures["retain"] < settings.retain_floor
        self.log.append(
            {"step": self.step, **terms, **{f"validation_{k}": v for k, v in measures.items()},
             "rolled_back": rolled_back, "seconds_per_step": round(pace, 4),
             "peak_memory_mb": round(runtime.peak_memory() / 1e6)}
        )  # fmt: skip
        if rolled_back:
            self._restore(self.good)
            self.optimizer.state.clear()
            self.rate_scale /= 2
        else:
            self.good = self.weights()
            met = measures["forget"] <= settings.forget_threshold
            if met and self.step >= settings.patience:
                self.stopped = "thresholds"
        self._save()

    def _restore(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def _save(self) -> None:
        tensors = {f"good.{n}": t for n, t in self.good.items()}
        tensors |= {f"now.{n}": t for n, t in self.weights().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        state = {name: getattr(self, name) for name in STATE}
        write_rows(self.log_path, self.log)
        write_bytes(self.checkpoint, save(tensors, metadata={"state": json.dumps(state)}))

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
        self.good = {n: tensors[f"good.{n}"] for n in self.parameters}
        self._restore({n: tensors[f"now.{n}"] for n in self.parameters})
        for name, parameter in self.parameters.items():
            if f"step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.log = [row for row in read_rows(self.log_path) if row["step"] <= self.step]
