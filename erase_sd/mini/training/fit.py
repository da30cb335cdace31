"""One resumable training loop for every part of the miniature world.

Nothing random is carried over: step `i` draws its batch from a generator seeded with `i`, so a
run that was killed and started again repeats an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Loss = Callable[[torch.Generator], Tensor]


def one_cycle(step: int, steps: int, warm: float = 0.05) -> float:
    """Share of the peak rate: linear warm-up, then a cosine to 2 %."""
    done = step / steps
    if done < warm:
        return (step + 1) / (warm * steps + 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def steady(step: int, steps: int, warm: int = 200, decay: float = 1 / 2) -> float:
    """Share of the peak rate: warm-up, a plateau, then straight down to 2 % in the last half.

    Up to the fall it does not depend on `steps`, so a run can be shortened or drawn out.
    """
    fall = (steps - step) / (decay * steps)
    return min((step + 1) / warm, 1.0, 0.02 + 0.98 * fall)


def fit(
    name: str,
    model: nn.Module,
    loss: Loss,
    *,
    steps: int,
    rate: float,
    folder: Path,
    decay: float = 0.01,
    average: float | None = None,
    schedule: Callable[[int, int], float] = one_cycle,
    shards: int = 1,
    save_every: int = 250,
) -> None:
    """Trains `model` in place for `steps` steps of AdamW (betas 0.9, 0.99), `rate` times `schedule`.

    `loss(generator)` returns a scalar; with `shards`, as many batches of it are taken at once, each on
    a thread of its own (set OMP_NUM_THREADS=1), and their gradients averaged. With `average` (the decay of an exponential moving
    average, warmed up) the averaged weights are what remains at the end. A checkpoint in `folder`
    is written every `save_every` steps and picked up by the next call.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    mean = {n: p.detach().clone() for n, p in parameters.items()} if average else {}
    path = folder / f"{name}.safetensors"
    buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    start = _resume(path, parameters, buffers, optimizer, mean)
    model.train()
    began, seen, pool = time.monotonic(), 0.0, ThreadPoolExecutor(shards)
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, steps)
        optimizer.zero_grad(set_to_none=True)
        seeds = [1_000_003 * (step + 1) + 17 * i for i in range(shards)]
        seen += sum(pool.map(lambda seed: _backward(loss, seed, shards), seeds))
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        if average:
            keep = min(average, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(mean.values()), list(parameters.values()), 1 - keep)
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            left = pace * (steps - step - 1) / 60
            print(f"{name} {step + 1}/{steps} loss {seen / 50:.4f} {pace:.2f} s/step "
                  f"{left:.1f} min left", flush=True)  # fmt: skip
            seen = 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(path, step + 1, parameters, buffers, optimizer, mean)
    if average:
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(mean[n])
    model.eval()


def _backward(loss: Loss, seed: int, shards: int) -> float:
    value = loss(torch.Generator().manual_seed(seed)) / shards
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach())


def _save(
    path: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
    mean: dict[str, Tensor],
) -> None:
    tensors = {f"model.{n}": p.detach().contiguous() for n, p in parameters.items()}
    for n, p in parameters.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{n}"] = optimizer.state[p][key].contiguous()
    tensors |= {f"mean.{n}": m for n, m in mean.items()}
    tensors |= {f"buffer.{n}": b.contiguous() for n, b in buffers.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"state": json.dumps({"step": step})})
    partial.replace(path)


def _resume(
    path: Path,
    parameters: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
    mean: dict[str, Tensor],
) -> int:
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        step = int(json.loads(file.metadata()["state"])["step"])
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(file.get_tensor(f"model.{n}"))
                optimizer.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"exp_avg.{n}"),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{n}"),
                }
                if mean:
                    mean[n].copy_(file.get_tensor(f"mean.{n}"))
            for n, b in buffers.items():
                b.copy_(file.get_tensor(f"buffer.{n}"))
    print(f"resumed at step {step} from {path.name}", flush=True)
    return step
