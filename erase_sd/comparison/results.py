"""The measurements of a grid's run folders, and the files made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EraseError, RunError
from ..files import write_csv, write_text
from ..run import Run
from ..run.measurements import AttackRecord, Rate, RateGroup
from ..run.records import Variant
from ..scoring.stats import wilson
from .grid import Cell
from .markdown import tables_markdown
from .plots import plot_concept_counts, plot_pareto
from .rows import ATTACK, COLUMNS, DIVERGED, FAILED, CellMeasure
from .tables import Table, tables


def measures_of(
    cell: Cell, images: bool = True, reason: str = "", attacks: Sequence[str] = ()
) -> list[CellMeasure]:
    """What a cell measured, detection rates only with `images`, and of attacks only those that are named:
    the run may have been attacked by others, with other settings.

    With a `reason`, or if the run folder cannot be read, a single row that states why: everything else
    in the folder may stem from an earlier attempt.
    """
    try:
        if not reason:
            run = Run(cell.folder)
            rates = _rates(cell, run) if images else []
            return [*_costs(cell, run), *rates, *_attacks(cell, run, attacks), *_clip(cell, run)]
    except EraseError as error:
        reason = str(error)
    return [_measure(cell, FAILED, reason=reason)]


def _measure(cell: Cell, measure: str, **fields: Any) -> CellMeasure:
    return CellMeasure(
        concepts=cell.concepts, method=cell.spec.method, overrides=cell.spec.overrides_text,
        seed=cell.seed, measure=measure, **fields,
    )  # fmt: skip


def _costs(cell: Cell, run: Run) -> list[CellMeasure]:
    """Costs of the unlearning, and its last validation step that was not rolled back.

    The time of a resumed run is unknown. Before the first validation step the model is the original.
    """
    if run.status("unlearn") != "done":
        return []
    record = run.unlearned()
    if not record.encoders:
        raise RunError(f"{run.folder / 'run.json'}: damaged, has no result of an encoder")
    module, result = next(iter(record.encoders.items()))  # of SDXL's two encoders, the first
    log = run.training(module)
    rows = [
        _measure(cell, "unlearn_seconds", value=None if result.resumed_at else record.seconds),
        _measure(cell, "peak_memory_mb", value=record.peak_memory_mb),
        _measure(
            cell, "steps", value=result.steps, reason=DIVERGED if result.stopped == DIVERGED else ""
        ),
    ]
    if not log:
        return rows
    kept = [step for step in log if not step.rolled_back]
    residual = kept[-1].residual_concept_similarity if kept else 1.0
    fidelity = kept[-1].retained_fidelity if kept else 1.0
    for measure, group, value in (
        ("residual_concept_similarity", "forget", residual),
        ("retained_fidelity", "retain", fidelity),
    ):
        rows.append(_measure(cell, measure, group=group, variant="erased", value=value))
    return rows


def _rates(cell: Cell, run: Run) -> list[CellMeasure]:
    """Detection rates of the plain prompts, pooled over the concepts of the run.

    The other prompts are the same for every concept and count once.
    """
    if run.status("score") != "done":
        return []
    plain = [rates for rates in run.scores().rates if rates.kind == "plain"]
    rows = []
    for group in dict.fromkeys(rates.group for rates in plain):
        own = [rates for rates in plain if rates.group == group]
        own = own[:1] if group == "retained_other" else own
        originals, erased = [c.original for c in own], [c.erased for c in own]
        rows.append(_pooled(cell, "detection_rate", group, "original", originals))
        rows.append(_pooled(cell, "detection_rate", group, "erased", erased))
    return rows


def _pooled(
    cell: Cell, measure: str, group: RateGroup, variant: Variant, rates: Sequence[Rate]
) -> CellMeasure:
    """Several rates as one, over all of their images."""
    detected, n = sum(rate.detected for rate in rates), sum(rate.n for rate in rates)
    low, high = wilson(detected, n)
    return _measure(
        cell, measure, group=group, variant=variant, value=detected / n, n=n, low=low, high=high
    )


def _attacks(cell: Cell, run: Run, attacks: Sequence[str]) -> list[CellMeasure]:
    """The strongest row of each of the `attacks`, pooled over the concepts of the run."""
    record = run.attacks() if attacks else None
    strongest: dict[str, dict[str, AttackRecord]] = {}
    for row in record.rows if record else ():
        if row.control or row.attack not in attacks:
            continue
        own = strongest.setdefault(row.attack, {})
        before = own.get(row.concept)
        if before is None or row.attacked.value > before.attacked.value:
            own[row.concept] = row
    rows = []
    for name, own in strongest.items():
        originals, attacked = [r.original for r in own.values()], [r.attacked for r in own.values()]
        rows.append(_pooled(cell, f"{ATTACK}{name}", "target", "original", originals))
        rows.append(_pooled(cell, f"{ATTACK}{name}", "target", "erased", attacked))
    return rows


def _clip(cell: Cell, run: Run) -> list[CellMeasure]:
    """CLIP-side measures of the run's evaluation."""
    evaluation = run.evaluation()
    return [
        _measure(
            cell, m.measure, group=m.set, variant=m.variant, value=m.value, n=m.n, low=m.low,
            high=m.high,
        )
        for m in (evaluation.measurements if evaluation else ())
    ]  # fmt: skip


def write_results(out: Path, rows: list[CellMeasure], command: str) -> list[Table]:
    """Writes `comparison.csv`, `comparison.md`, which begins with the `command`, and the figures for
    which there are measurements; returns the tables. A figure of an earlier comparison is removed."""
    filled = tables(rows)
    write_csv(out / "comparison.csv", COLUMNS, (row.as_row() for row in rows))
    write_text(out / "comparison.md", tables_markdown(filled, rows, command))
    for plot, name in ((plot_pareto, "pareto.png"), (plot_concept_counts, "several.png")):
        if not plot(rows, out / name):
            (out / name).unlink(missing_ok=True)
    return filled
