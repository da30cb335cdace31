"""What the cells of a grid left in their run folders, as tidy rows, and the files made of them."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from ..errors import EraseError
from ..files import read_json, read_rows, write_text
from ..run import Run
from ..scoring.rates import wilson
from . import plots
from .grid import Cell
from .markdown import markdown
from .rows import DIVERGED, FAILED, HEADER, Row
from .tables import Table, tables


def rows_of(cell: Cell, images: bool = True, reason: str = "") -> list[Row]:
    """What a cell left, as tidy rows, its images' rates on request; with a `reason`, or where it
    cannot be read, a row that says so alone, for the rest may be of an earlier try."""
    try:
        if not reason:
            return [*_costs(cell), *(_detections(cell) if images else ()), *_evaluation(cell)]
    except EraseError as error:
        reason = str(error)
    return [_row(cell, FAILED, reason=reason)]


def _row(cell: Cell, measure: str, **fields: Any) -> Row:
    return Row(
        concept=cell.concept, method=cell.spec.method, overrides=cell.spec.text, seed=cell.seed,
        measure=measure, **fields,
    )  # fmt: skip


def _costs(cell: Cell) -> list[Row]:
    """What unlearning took, without the time where it was killed once and went on, and its last look
    at the validation images that was not rolled back: before the first there is everything left."""
    run = Run(cell.folder)
    if run.status("unlearn") != "done":
        return []
    entry = run.manifest["stages"]["unlearn"]
    ended = DIVERGED if entry["stopped"] == DIVERGED else ""
    rows = [
        _row(cell, "unlearn_seconds", value=None if entry.get("resumed_at") else entry["seconds"]),
        _row(cell, "peak_memory_mb", value=entry["peak_memory_mb"]),
        _row(cell, "steps", value=entry["steps"], reason=ended),
    ]
    log = read_rows(cell.folder / "train.jsonl")
    looks = [row for row in log if not row.get("rolled_back")]
    for group in ("forget", "retain") if log else ():
        value = looks[-1][f"validation_{group}"] if looks else 1.0
        rows.append(_row(cell, f"validation_{group}", group=group, arm="erased", value=value))
    return rows


def _detections(cell: Cell) -> list[Row]:
    """The rates of the plain prompts. Those of several concepts come together; what is to stay
    elsewhere is the same for each of them, and counts once."""
    if Run(cell.folder).status("score") != "done":
        return []
    scored = [
        row
        for row in read_json(cell.folder / "scores.json")["rows"]
        if row.get("kind") is None and row["arm"] in ("original", "erased")
    ]
    rows = []
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in scored):
        part = [row for row in scored if (row["group"], row["arm"]) == (group, arm)]
        part = part[:1] if group == "retained_other" else part
        found, n = (sum(row[key] for row in part) for key in ("found", "n"))
        low, high = wilson(found, n)
        rows.append(
            _row(
                cell,
                "detection_rate",
                group=group,
                arm=arm,
                value=found / n,
                n=n,
                low=low,
                high=high,
            )
        )
    return rows


def _evaluation(cell: Cell) -> list[Row]:
    path = cell.folder / "evaluation.json"
    keys = ("group", "arm", "value", "n", "low", "high")
    return [
        _row(cell, row["measure"], **{key: row[key] for key in keys})
        for row in (read_json(path)["rows"] if path.is_file() else ())
    ]


def write(out: Path, rows: list[Row], command: str) -> list[Table]:
    """Writes `comparison.csv`, `comparison.md`, which names the `command`, and the pictures that the
    rows give; returns the tables."""
    made = tables(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    write_text(out / "comparison.csv", text.getvalue())
    write_text(out / "comparison.md", markdown(made, rows, command))
    plots.pareto(rows, out / "pareto.png")
    plots.several(rows, out / "several.png")
    return made
