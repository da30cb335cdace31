"""A new method is one file with one class, and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import pytest

from erase_sd import methods
from erase_sd.methods import registry
from erase_sd.methods.base import Method, Task
from erase_sd.methods.descriptions import describe
from erase_sd.models import erased
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning import stage
from erase_sd.unlearning.settings import UnlearnSettings, parse_concepts
from erase_sd.unlearning.stage import unlearn

FILE = '''"""A method of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from erase_sd.methods.base import Batch, Method, Need, Student


@dataclass(frozen=True, kw_only=True)
class Shrink(Method):
    """Nobody (source: a test of this project): shrinks the concept's hidden states."""

    needs: ClassVar[frozenset[Need]] = frozenset({"hidden_states"})
    learning_rate: ClassVar[float] = 0.003
    shrink_weight: float = 1.5
    """Weight of the mean squared hidden states."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        hidden_states = student(batch.forget).hidden_states
        return {"shrink": self.shrink_weight * hidden_states.square().mean()}
'''


@pytest.fixture
def shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "shrink.py").write_text(FILE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "more")])
    names = Literal[*get_args(registry.MethodName), "shrink"]  # the one line
    monkeypatch.setattr(registry, "MethodName", names)
    return "shrink"


def test_it_is_listed_with_its_hyperparameters(shrink: str) -> None:
    assert shrink in list(registry.METHODS)
    description = describe(shrink)
    assert description.citation.startswith("Nobody (source: a test of this project)")
    assert description.learning_rate == 0.003
    [weight] = description.hyperparameters
    assert (weight.name, weight.default) == ("shrink_weight", 1.5)
    assert weight.meaning == "Weight of the mean squared hidden states."


def test_it_unlearns_by_name_with_its_own_hyperparameters(
    shrink: str, tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "mine_mentions", lambda *_: {"apple": {"pippin": 2}})
    tasks: list[Task] = []
    monkeypatch.setattr(Method, "prepare", lambda own, task: tasks.append(task) or own)
    run = Run(Path("runs/a"))
    settings = UnlearnSettings(
        concepts=parse_concepts(["apple", "couch"]), method=shrink, seed=5,
        hyperparameters={"shrink_weight": 2.0}, steps=4, validate_every=2, forget_batch=4,
        retain_batch=4,
    )  # fmt: skip
    unlearn(settings, tiny, run)
    [task] = tasks
    assert (task.concepts, task.seed) == (("apple", "couch"), 5)
    for name, pairs in (("forget", task.forget), ("retain", task.retain)):
        assert {(pair.set, pair.split) for pair in pairs.pairs} == {(name, "train")}
    assert (run.erased / "model.safetensors").is_file()
    recorded = run.unlearned().settings
    assert recorded["hyperparameters"] == {"shrink_weight": 2.0}
    assert recorded["learning_rate"] == 0.003
    assert not erased.check(run.erased).mentions  # it did not ask for them
