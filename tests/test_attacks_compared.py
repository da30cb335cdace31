"""Attacks beside the methods' rates in a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_ladder import attack_record

from erase_sd.attacks.registry import attack_class
from erase_sd.attacks.settings import AttackSettings
from erase_sd.comparison.cell import _is_attacked
from erase_sd.comparison.grid import Cell, MethodSpec
from erase_sd.comparison.results import _attacks
from erase_sd.comparison.tables import tables
from erase_sd.data.concept import Concept
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.run.measurements import AttackRecord, AttacksRecord
from erase_sd.scoring.rates import rate_of

CELL = Cell(("apple",), MethodSpec("hirm"), 0, Path("runs/apple"))


def with_settings(row: AttackRecord) -> AttackRecord:
    """The row as if it were made with the default settings."""
    settings = {"images": 50, "split": "held-out", "seed": 2000, "steps": 50, "guidance": 7.5}
    budgets = attack_class(row.attack)().budgets_json()
    return dataclasses.replace(row, settings=settings | {"budgets": budgets})


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with two rows of one attack, and one of another."""
    weak = attack_record("p4d", 1)
    strong = dataclasses.replace(weak, row="2 tokens", attacked=rate_of([i < 4 for i in range(10)]))
    rows = [weak, strong, attack_record("sweep", 0)]
    record = AttacksRecord(
        threshold=0.25, detector="d", detector_sha256="",
        rows=(*map(with_settings, rows), attack_record("none", 0)),
    )  # fmt: skip
    monkeypatch.setattr(Run, "attacks", lambda _: record)
    return Run(CELL.folder)


def test_the_strongest_row_of_each_attack_stands_beside_the_original(attacked: Run) -> None:
    rows = _attacks(CELL, attacked, ("p4d", "sweep"))
    [table] = [table for table in tables(rows) if table.title == "Under attack"]
    assert table.headings == ("method", "p4d", "sweep", "runs")
    lines = [[cell.text for cell in line] for line in table.lines]
    assert lines == [["original", "100.0", "100.0", ""], ["hirm", "40.0", "0.0", "1"]]


def test_attacks_that_the_comparison_did_not_ask_for_are_not_in_its_table(attacked: Run) -> None:
    assert {row.measure for row in _attacks(CELL, attacked, ("p4d",))} == {"attack_p4d"}
    assert _attacks(CELL, attacked, ()) == []


def test_a_cell_is_attacked_only_with_all_attacks_settings_and_concepts(
    attacked: Run, tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    concepts = [Concept("apple")]
    monkeypatch.setattr(Run, "unlearned", lambda _: SimpleNamespace(concepts=concepts))
    monkeypatch.setattr(Models, "detector_hash", lambda _: "")
    wanted = AttackSettings(attacks=("p4d", "sweep"))
    assert _is_attacked(attacked, wanted, tiny, ())
    for other in (
        AttackSettings(attacks=("p4d", "embeddings")), AttackSettings(attacks=("p4d",), images=100),
        AttackSettings(attacks=("p4d",), seed=7), AttackSettings(attacks=("p4d",), steps=3),
        AttackSettings(attacks=("p4d",), budgets={"steps": 1}),
    ):  # fmt: skip
        assert not _is_attacked(attacked, other, tiny, ())
    concepts.append(Concept("chair"))  # killed before its attacks
    assert not _is_attacked(attacked, wanted, tiny, ())
    concepts.pop()
    judged = {"detector_class": "apple", "detector_text_sha256": None, "sampler": tiny.sampler}
    record = attacked.attacks()
    assert record is not None
    for change in (
        {}, {"detector_class": "orange"}, {"detector_text_sha256": "0"}, {"sampler": "unipc"},
    ):  # fmt: skip
        rows = [
            dataclasses.replace(row, settings=row.settings | judged | change) for row in record.rows
        ]
        other = dataclasses.replace(record, rows=tuple(rows))
        with monkeypatch.context() as patch:
            patch.setattr(Run, "attacks", lambda _, own=other: own)
            assert _is_attacked(attacked, wanted, tiny, ()) == (not change), change
    monkeypatch.setattr(Models, "detector_hash", lambda _: "of another detector")
    assert not _is_attacked(attacked, wanted, tiny, ())
