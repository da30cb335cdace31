"""The checkpoint: training resumes from it and ends with the same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import RunError, reason
from ..files import whole_file

Stopped = Literal["steps", "thresholds", "schedule", "solved", "diverged"]


@dataclass(kw_only=True)
class TrainerState:
    """Where training stands."""

    step: int = 0
    """Number of steps taken."""
    accepted_step: int = 0
    """Step of the last accepted validation; 0 if there is none."""
    learning_rate_scale: float = 1.0
    """Factor of the learning rate; roll-backs halve it."""
    batch_sizes: tuple[int, int]
    """Forget and retain pairs per step."""
    stopped: Stopped | None = None
    """Why training ended; None while it goes on."""
    stage: int = 0
    """Stage of a staged method, from 0."""
    residual: float | None = None
    """A staged method's residual at the last accepted validation."""


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint."""

    state: TrainerState
    accepted: Mapping[str, Tensor]
    """Weights of the last accepted validation, by parameter name."""
    optimizer: Mapping[str, Mapping[str, Tensor]]
    """Adam's state (`step`, `exp_avg`, `exp_avg_sq`) by parameter name; empty after a roll-back."""
    memory: Mapping[str, Tensor]
    """What the method carries from step to step."""


class Checkpoint:
    """A safetensors file with the tensors of a snapshot and its state as JSON metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, snapshot: Snapshot) -> None:
        """Writes the snapshot, whole or not at all."""
        tensors = {f"accepted.{name}": tensor for name, tensor in snapshot.accepted.items()}
        tensors |= {f"memory.{name}": tensor for name, tensor in snapshot.memory.items()}
        for name, adam in snapshot.optimizer.items():
            tensors |= {f"{key}.{name}": tensor for key, tensor in adam.items()}
        state = json.dumps(dataclasses.asdict(snapshot.state))
        # save_file instead of bytes in memory: the tensors of a large tower are gigabytes.
        with whole_file(self.path) as file:
            save_file(tensors, file, metadata={"state": state})

    def load(self) -> Snapshot | None:
        """The snapshot, or None if there is no file. Raises RunError if it is damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                state = TrainerState(**json.loads(file.metadata()["state"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise RunError(
                f"{self.path}: damaged ({reason(error)}); delete it to start over"
            ) from None
        state.batch_sizes = (state.batch_sizes[0], state.batch_sizes[1])
        accepted: dict[str, Tensor] = {}
        memory: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "accepted":
                accepted[name] = tensor
            elif kind == "memory":
                memory[name] = tensor
            else:
                optimizer.setdefault(name, {})[kind] = tensor
        return Snapshot(state, accepted, optimizer, memory)
