"""Short unlearning runs on tiny models, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from erase_sd.data.concept import Concept
from erase_sd.methods.registry import METHODS
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings

APPLE = (Concept("apple"),)
FEW = {
    "rows": 2, "sampling_steps": 2, "attack_steps": 1, "forget_captions": 8, "retain_captions": 8,
    "images": 8, "iterations": 20,
}  # fmt: skip
"""Hyperparameters that make the methods quick that work with a U-Net or generate their own images."""


def short(**changes: Any) -> UnlearnSettings:
    """Six steps, a validation every two, no retain floor."""
    settings: dict[str, Any] = {
        "concepts": APPLE, "steps": 6, "validate_every": 2, "forget_batch": 8, "retain_batch": 8,
        "learning_rate": 1e-2, "retain_floor": 0.0,
    }  # fmt: skip
    return UnlearnSettings(**(settings | changes))


def few(method: str) -> dict[str, int]:
    """The hyperparameters of FEW that the method has."""
    return {name: FEW[name] for name in METHODS[method].hyperparameters() if name in FEW}


def weights(run: Run) -> dict[str, Tensor]:
    """The tensors of the module that the run erased."""
    [file] = [path for path in run.erased.rglob("*.safetensors") if "image_tower" not in path.parts]
    return load_file(file)


def original_weights(models: Models) -> dict[str, Tensor]:
    return load_file(models.folder / "text_encoder" / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class KilledError(BaseException):
    """Stands for a process killed between two steps."""


def kill_at(step: int) -> Callable[[int, int, str], None]:
    """A progress callback that kills the run after that step."""

    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            raise KilledError

    return progress
