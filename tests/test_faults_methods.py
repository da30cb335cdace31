"""Hyperparameters at the ends of what they allow: a result with finite weights, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faulty import Faults
from unlearn_runs import short, weights

from erase_sd.errors import EraseError, SettingError
from erase_sd.methods.registry import METHODS, MethodName
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.stage import unlearn

pytestmark = pytest.mark.faults
EXTREMES: list[tuple[MethodName, dict[str, Any]]] = [
    ("emmn", {"noise_steps": 0}), ("emmn", {"noise_steps": 2, "noise_learning_rate": 1e6}),
    ("emmn", {"noise_steps": 2, "noise_decay": -1e6}), ("emmn", {"images": 100_000, "noise_steps": 1}),
    ("emmn", {"impair_share": -5, "noise_steps": 1}), ("emmn", {"retain_weight": -1e6, "noise_steps": 1}),
    ("lipschitz", {"iterations": 1, "images": 1, "ascent": 1e6}),
    ("lipschitz", {"iterations": 1, "images": 1, "prompt": "nothing"}),
    ("lipschitz", {"iterations": 1, "images": 1, "prompt": "{x} {}"}),
    ("lipschitz", {"iterations": 1, "images": 1, "prompt": "{} " * 99}),
    ("lipschitz", {"iterations": 1, "images": 2, "tensors": 100_000}),
    ("lipschitz", {"iterations": 1, "images": 1, "stop": -1}),
    ("hirm", {"templates": "nothing|at all"}), ("hirm", {"templates": "{0.__class__}"}),
    ("hirm", {"toward": ""}), ("hirm", {"toward": "word " * 99}),
    ("projection", {"ridge": 0, "retain_weight": 0}), ("projection", {"ridge": -1}),
    ("projection", {"retain_weight": -1e6}), ("projection", {"captions": 1}),
    ("projection", {"first_layer": 100}),
    ("cliperase-hardened", {"tokens": 1000}), ("cliperase-hardened", {"pool": 10_000}),
    ("cliperase-hardened", {"step_size": 1e6}), ("cliperase-hardened", {"restart": 7, "random": 7}),
    ("cliperase-hardened", {"start": -1, "rows": 10_000}), ("cliperase-hardened", {"captions": 1}),
    ("cliperase-hardened", {"attack_steps": 1_000}), ("cliperase-anchored", {"anchor_weight": -1e6}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("method", "values"), EXTREMES)
def test_extreme_hyperparameters(
    method: MethodName, values: dict[str, Any], tiny: Models, faults: Faults
) -> None:
    run = Run(Path("runs/apple"))
    with faults("settings out of bounds", f"{method}: {str(values)[:60]}"):
        settings: dict[str, Any] = {"hyperparameters": values, "method": method}
        if method == "projection":
            settings |= {"learning_rate": None, "steps": None, "retain_floor": None}
        else:
            settings |= {"steps": 2, "validate_every": 1}
        try:
            unlearn(short(**settings), tiny, run)
        except EraseError as error:
            assert len(str(error).splitlines()) == 1
            assert not run.erased.exists()
        else:
            assert all(tensor.isfinite().all() for tensor in weights(run).values())


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method, kind in METHODS.items()
        for name, default in kind.hyperparameters().items()
        if isinstance(default, int | float)
    ],
)
def test_numbers_beyond_all_bounds_are_one_line(
    method: MethodName, name: str, faults: Faults
) -> None:
    with faults("settings out of bounds", f"{method}: {name} beyond all bounds"):
        for value in (1e300, float("nan"), float("inf"), -1e300):
            with pytest.raises(SettingError, match=name):
                short(method=method, hyperparameters={name: value}, learning_rate=None, steps=None)
