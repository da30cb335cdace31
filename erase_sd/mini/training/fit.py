"""One resumable training loop for all models of the miniature world.

Step `i` samples its batch from a generator seeded with `i`, so an interrupted training that is
started again gives the same weights as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Loss = Callable[[torch.Generator], Tensor]
"""A scalar loss on a batch sampled with the generator."""


def one_cycle(step: int, steps: int, warm: float = 0.05) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to 0.02."""
    done = step / steps
    if done < warm:
        return (step + 1) / (warm * steps + 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def plateau(step: int, steps: int, warm: int = 200, decay: float = 1 / 2) -> float:
    """Factor of the learning rate: warm-up, constant, then linearly down to 0.02 in the last half.

    Before the decay it does not depend on `steps`, so a training can still be made longer or shorter.
    """
    fall = (steps - step) / (decay * steps)
    return min((step + 1) / warm, 1.0, 0.02 + 0.98 * fall)


def fit(
    name: str,
    model: nn.Module,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
    weight_decay: float = 0.01,
    average: float | None = None,
    schedule: Callable[[int, int], float] = one_cycle,
    shards: int = 1,
    save_every: int = 250,
    minutes: float | None = None,
) -> None:
    """Trains `model` in place with AdamW (betas 0.9, 0.99) at `learning_rate` times `schedule`.

    Each step averages the gradients of `shards` batches, one per thread (set OMP_NUM_THREADS=1).
    With `average`, the decay of a moving average, the model ends with the averaged weights. The next
    call resumes from the checkpoint that is written to `folder` every `save_every` steps. With
    `minutes`, the schedule follows the clock where that is ahead of the steps, and the training ends
    with the time: for a machine that is lent for so long.
    """
    state = _State.of(model, learning_rate, weight_decay, average)
    path = folder / f"{name}.safetensors"
    start = state.resume(path)
    model.train()
    log = _StepLog(name, start, steps)
    place = next(model.parameters()).device
    with ThreadPoolExecutor(shards) as pool:
        for step in range(start, steps):
            elapsed = log.minutes / minutes * steps if minutes else 0.0
            if elapsed >= steps:
                break
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate * schedule(max(step, int(elapsed)), steps)
            state.optimizer.zero_grad(set_to_none=True)
            seeds = [1_000_003 * (step + 1) + 17 * i for i in range(shards)]
            value = sum(pool.map(lambda seed: _backward(loss, seed, shards, place), seeds))
            norm = nn.utils.clip_grad_norm_(list(state.parameters.values()), 1.0)
            for parameter in state.parameters.values():  # one bad batch must not end everything
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(~norm.isfinite(), 0.0)
            state.optimizer.step()
            state.update_average(step)
            log.add(step, value)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                state.save(path, step + 1)
    state.apply_average()
    model.eval()


def _backward(loss: Loss, seed: int, shards: int, place: torch.device) -> Tensor:
    """Accumulates the gradient of one batch; returns its share of the step's loss, a scalar."""
    value = loss(torch.Generator(place).manual_seed(seed)) / shards
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


class _StepLog:
    """Prints the mean loss and the pace every 50 steps."""

    def __init__(self, name: str, start: int, steps: int) -> None:
        self.name, self.start, self.steps = name, start, steps
        self.began = time.monotonic()
        self.total: float | Tensor = 0.0

    @property
    def minutes(self) -> float:
        """Time since the start."""
        return (time.monotonic() - self.began) / 60

    def add(self, step: int, loss: float | Tensor) -> None:
        """Counts a step."""
        # Not read before it is printed: reading a loss waits for the GPU.
        self.total += loss
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - self.began) / (step + 1 - self.start)
            minutes = pace * (self.steps - step - 1) / 60
            print(f"{self.name} {step + 1}/{self.steps} loss {float(self.total) / 50:.4f} "
                  f"{pace:.2f} s/step {minutes:.1f} min left", flush=True)  # fmt: skip
            self.total = 0.0


@dataclass(frozen=True)
class _State:
    """Everything that training changes, and its checkpoint file."""

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    mean: dict[str, Tensor]
    """Moving average of the parameters; empty if none is kept."""
    average: float | None

    @classmethod
    def of(
        cls, model: nn.Module, learning_rate: float, weight_decay: float, average: float | None
    ) -> _State:
        """The state of a model before its first step."""
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        matrices = [p for p in parameters.values() if p.ndim > 1]
        vectors = [p for p in parameters.values() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        mean = {n: p.detach().clone() for n, p in parameters.items()} if average else {}
        return cls(parameters, buffers, optimizer, mean, average)

    def update_average(self, step: int) -> None:
        if self.average:
            keep = min(self.average, (step + 1) / (step + 10))
            parameters: list[Tensor] = list(self.parameters.values())
            with torch.no_grad():
                torch._foreach_lerp_(list(self.mean.values()), parameters, 1 - keep)

    def apply_average(self) -> None:
        """Puts the average of the parameters in their place."""
        with torch.no_grad():
            for name, mean in self.mean.items():
                self.parameters[name].copy_(mean)

    def save(self, path: Path, step: int) -> None:
        """Writes a checkpoint of that step: parameters, Adam's moments, the average and the buffers."""
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.parameters.items()}
        for n, p in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{n}"] = self.optimizer.state[p][key].contiguous()
        tensors |= {f"mean.{n}": m for n, m in self.mean.items()}
        tensors |= {f"buffer.{n}": b.contiguous() for n, b in self.buffers.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"state": json.dumps({"step": step})})
        partial.replace(path)

    def resume(self, path: Path) -> int:
        """Loads a checkpoint; returns its step, 0 if there is none."""
        if not path.exists():
            return 0
        with safe_open(path, framework="pt") as file, torch.no_grad():
            step = int(json.loads(file.metadata()["state"])["step"])
            for n, p in self.parameters.items():
                p.copy_(file.get_tensor(f"model.{n}"))
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"exp_avg.{n}"),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{n}"),
                }
            for n, m in self.mean.items():
                m.copy_(file.get_tensor(f"mean.{n}"))
            for n, b in self.buffers.items():
                b.copy_(file.get_tensor(f"buffer.{n}"))
        print(f"resumed at step {step} from {path.name}", flush=True)
        return step
