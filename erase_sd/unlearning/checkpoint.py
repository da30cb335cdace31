"""The checkpoint: training resumes from it and ends with the same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..checked import load_tensors, save_tensors
from ..errors import RunError
from ..reading import parse_record
from ..run.differences import brief
from ..run.records import Origin, Stopped, TrainRecord
from ..sharing import wait, writes
from .settings import UnlearnSettings

BYTES_PER_SECOND = 4e8
"""Assumed speed of hashing and writing a checkpoint, until one has been timed."""


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
    current: Mapping[str, Tensor]
    """Weights of a step between two validations; empty after one, when they are the accepted ones."""
    optimizer: Mapping[str, Mapping[str, Tensor]]
    """Adam's state (`step`, `exp_avg`, `exp_avg_sq`) by parameter name; empty after a roll-back."""
    memory: Mapping[str, Tensor]
    """What the method carries from step to step."""
    log: tuple[TrainRecord, ...]
    """Validation steps so far."""

    def adam(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """Adam's state of a parameter; the step count is on the CPU, as Adam.load_state_dict has it."""
        state = self.optimizer.get(name, {})
        return {key: t if key == "step" else t.to(device) for key, t in state.items()}


@dataclass(frozen=True)
class _Written:
    """What the metadata of a checkpoint holds, as JSON."""

    state: TrainerState
    log: tuple[TrainRecord, ...]
    identity: dict[str, Any]


def seconds_to_write(weights: Mapping[str, Tensor]) -> float:
    """About how long a checkpoint of these weights takes, which also holds Adam's two moments."""
    return 3 * sum(tensor.nbytes for tensor in weights.values()) / BYTES_PER_SECOND


def identity_of(settings: UnlearnSettings, origin: Origin) -> dict[str, Any]:
    """Everything that has to be the same for training to resume, as plain JSON by name."""
    values = dataclasses.asdict(settings) | dataclasses.asdict(origin)
    values |= {f"version of {package}": v for package, v in runtime.versions().items()}
    values |= {"device": runtime.device().type, "dtype": settings.precision}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


class Checkpoint:
    """A safetensors file with the tensors of a snapshot, its state as JSON metadata, and a checksum."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity

    def save(self, snapshot: Snapshot) -> None:
        """Writes the snapshot, whole or not at all; of a launcher's processes only the first does."""
        if not writes():
            return
        tensors = {f"accepted.{name}": tensor for name, tensor in snapshot.accepted.items()}
        tensors |= {f"current.{name}": tensor for name, tensor in snapshot.current.items()}
        tensors |= {f"memory.{name}": tensor for name, tensor in snapshot.memory.items()}
        for name, adam in snapshot.optimizer.items():
            tensors |= {f"{key}.{name}": tensor for key, tensor in adam.items()}
        written = _Written(snapshot.state, snapshot.log, self.identity)
        save_tensors(self.path, tensors, {"written": json.dumps(dataclasses.asdict(written))})

    def load(self) -> Snapshot | None:
        """The snapshot, or None if there is no file; returns once all processes in step have read it.

        Raises RunError if it is damaged, and, naming what differs, if it was written with other
        settings, data, weights or versions.
        """
        snapshot = self._read() if self.path.exists() else None
        wait()
        return snapshot

    def _read(self) -> Snapshot:
        end = "delete it to start over"
        try:
            tensors, about = load_tensors(self.path)
            written = parse_record(about.get("written", ""), _Written, str(self.path))
        except RunError as error:
            raise RunError(f"{error}; {end}") from None
        for name in sorted({*written.identity, *self.identity}):
            old, new = written.identity.get(name), self.identity.get(name)
            if old != new:
                raise RunError(
                    f"{self.path}: written with {name} {brief(old)}, now it is {brief(new)}; use the "
                    f"same, or {end}"
                )
        weights: dict[str, dict[str, Tensor]] = {"accepted": {}, "current": {}, "memory": {}}
        optimizer: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind in weights:
                weights[kind][name] = tensor
            else:
                optimizer.setdefault(name, {})[kind] = tensor
        return Snapshot(state=written.state, optimizer=optimizer, log=written.log, **weights)
