"""A new method is one file with one class, and one line; everything else takes it from there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from erase_sd.cli import app
from erase_sd.methods import METHODS
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.settings import Settings, concepts_from
from erase_sd.unlearning.stage import unlearn

FILE = '''"""A method of nobody's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from erase_sd.methods import Batch, Method, Student


@dataclass(frozen=True, kw_only=True)
class Shrink(Method):
    """Nobody (source: a test of this project): makes the concept's states small."""

    rate: ClassVar[float] = 0.003
    strength: float = 1.5
    """Of its only term."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        return {"shrink": self.strength * student(batch.forget).states.square().mean()}
'''


@pytest.fixture
def shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shrink.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("shrink")
    monkeypatch.setitem(METHODS, "shrink", module.Shrink)  # the one line
    return "shrink"


def test_the_command_line_lists_it_with_its_settings(shrink: str) -> None:
    said = CliRunner().invoke(app, ["methods"]).output
    assert "Nobody (source: a test of this project)" in said
    assert "learning rate 0.003" in said and "Of its only term." in said


def test_it_unlearns_by_name_with_its_own_weight_and_rate(shrink: str, tiny: Models) -> None:
    run = Run(Path("runs/a"))
    settings = Settings(
        concepts=concepts_from(["apple"]), method=shrink, weights={"strength": 2.0}, steps=4,
        validate_every=2, forget_batch=4, retain_batch=4,
    )  # fmt: skip
    unlearn(settings, tiny, run)
    assert (run.folder / "erased" / "model.safetensors").is_file()
    assert run.manifest["stages"]["unlearn"]["settings"]["weights"] == {"strength": 2.0}
