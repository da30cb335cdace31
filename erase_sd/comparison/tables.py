"""The comparison's tables: pure functions of its measurements."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .columns import COSTS, RETAINED, RETAINED_GROUPS, Column, forget_and_retain
from .rows import (
    ATTACK,
    DIVERGED,
    CellMeasure,
    Group,
    SeedMean,
    by_spec,
    erased_rows,
    mean_over_seeds,
    original_rows,
)

CLASS_COUNTS = ("zero_shot_retrieval",)
"""Measures that count classes; with one forget class per concept, every method would tie."""
HARMONIC_MEAN = "harmonic mean"
HARMONIC_MEAN_NOTE = (
    "Harmonic mean: of the share of the target's detections that was erased and of the share of the "
    "other objects' detections that was retained (mean of the two columns, capped at 1), relative to "
    "the original. Computed on prompts from validation images it can choose settings; on any other "
    "prompts it is only a summary."
)
ATTACKS_NOTE = (
    "Detection rates of the concept under each attack, its strongest row; the original: on captions "
    "that name it. What an attack reached with its budget, not what a stronger one would."
)
COSTS_NOTE = (
    "Unlearning only, mean ± standard deviation over seeds; memory is the peak of the process. "
    "Residual similarity (below 0 if the concept is repelled) and retained fidelity are measured on "
    "the captions of the validation images, in per cent."
)


@dataclass(frozen=True)
class TableCell:
    """One cell of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be printed."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[TableCell, ...], ...]
    text_columns: int = 1
    """How many columns, from the left, hold text; the others hold numbers."""
    note: str = ""
    """What applies to this table only."""


def tables(rows: Sequence[CellMeasure]) -> list[Table]:
    """Every table that the rows can fill, in the order of the papers' questions."""
    single = [row for row in rows if len(row.concepts) == 1] or list(rows)
    concepts = list(dict.fromkeys(row.concept for row in single))
    target = [Column(concept, "detection_rate", ("target",), concept) for concept in concepts]
    every_target = [Column("all", "detection_rate", ("target",))] if len(concepts) > 1 else []
    zero_shot = forget_and_retain("zero_shot_prediction", "prediction")
    zero_shot_retrieval = forget_and_retain("zero_shot_retrieval", "retrieval")
    images = [c for k in (1, 5, 10) for c in forget_and_retain(f"image_retrieval_r{k}", f"R@{k}")]
    texts = [c for k in (1, 5, 10) for c in forget_and_retain(f"text_retrieval_r{k}", f"R@{k}")]
    short = [Column("target", "detection_rate", ("target",)), *RETAINED, *zero_shot, *images[:2]]
    attacks = dict.fromkeys(row.measure for row in single if row.measure.startswith(ATTACK))
    attacked = [Column(name.removeprefix(ATTACK), name, ("target",)) for name in attacks]
    every = [
        _with_harmonic_mean(
            _table("Detection rates (Table 6)", [*target, *every_target, *RETAINED], single), single
        ),
        _table("Under attack", attacked, single, ATTACKS_NOTE),
        _table(
            "Zero-shot prediction and retrieval (Table 2)",
            [*zero_shot, *zero_shot_retrieval],
            single,
        ),
        _table("Image retrieval, caption to image (Table 3)", images, single),
        _table("Text retrieval, image to caption (Table 3)", texts, single),
        *_settings_tables(short, single),
        _by_concept_count(short, rows),
        _table("Time and memory", COSTS, rows, COSTS_NOTE + _divergences(rows)),
    ]
    return [table for table in every if table]


def _settings_tables(
    columns: Sequence[Column], rows: Sequence[CellMeasure]
) -> Iterable[Table | None]:
    """A table for each method that was run with more than one choice of settings."""
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        if len(by_spec(own)) > 1:
            title = f"{method}: effect of its settings (Table 4)"
            yield _with_harmonic_mean(_table(title, columns, own), own)


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[CellMeasure], note: str = ""
) -> Table | None:
    """One line for the original, if it was measured, and one for each spec.

    Columns without values are omitted; None if all are.
    """
    filled = _filled(columns, rows)
    if not filled:
        return None
    headings = ("method", *(column.heading for column in filled), "runs")
    return Table(title, headings, tuple(_lines(filled, rows)), note=note)


def _filled(columns: Sequence[Column], rows: Sequence[CellMeasure]) -> list[Column]:
    return [c for c in columns if mean_over_seeds(erased_rows(c.select(rows)))]


def _with_harmonic_mean(table: Table | None, rows: Sequence[CellMeasure]) -> Table | None:
    """The table with each spec's harmonic mean as its last but one column, if any spec has one."""
    means = {name: _harmonic_mean(own) for name, own in by_spec(rows).items()}
    if not table or not any(value is not None for value in means.values()):
        return table
    lines = []
    for *cells, runs in table.lines:
        value = means.get(cells[0].text)
        text = "" if value is None else f"{100 * value:.1f}"
        lines.append((*cells, TableCell(text), runs))
    headings = (*table.headings[:-1], HARMONIC_MEAN, table.headings[-1])
    return dataclasses.replace(
        table, headings=headings, lines=tuple(lines), note=HARMONIC_MEAN_NOTE
    )


def _harmonic_mean(rows: Sequence[CellMeasure]) -> float | None:
    """Harmonic mean of the erased and the retained share; None if either was not measured."""
    shares = {}
    groups: tuple[Group, ...] = ("target", "retained_same", "retained_other")
    for group in groups:
        own = [row for row in rows if row.measure == "detection_rate" and row.group == group]
        before, after = mean_over_seeds(original_rows(own)), mean_over_seeds(erased_rows(own))
        if before and after and before.mean:
            shares[group] = min(after.mean / before.mean, 1.0)
    kept = [share for group, share in shares.items() if group in RETAINED_GROUPS]
    if "target" not in shares or not kept:
        return None
    erased, retained = 1 - shares["target"], fmean(kept)
    return 2 * erased * retained / (erased + retained) if erased + retained else 0.0


def _by_concept_count(columns: Sequence[Column], rows: Sequence[CellMeasure]) -> Table | None:
    """Lines for each number of concepts in one run, for specs that have runs of several numbers."""
    swept = [s for s in by_spec(rows).values() if len({len(row.concepts) for row in s}) > 1]
    rows = [row for spec_rows in swept for row in spec_rows]
    filled = _filled(columns, rows)
    if not filled:
        return None
    lines = [
        (TableCell(str(count)), *line)
        for count in sorted({len(row.concepts) for row in rows})
        for line in _lines(filled, [row for row in rows if len(row.concepts) == count])
    ]
    headings = ("concepts", "method", *(column.heading for column in filled), "runs")
    title = "Several concepts in one run (Figure 3)"
    return Table(title, headings, tuple(lines), text_columns=2)


def _lines(columns: Sequence[Column], rows: Sequence[CellMeasure]) -> list[tuple[TableCell, ...]]:
    """The original's line and each spec's; the last cell counts the spec's measured runs."""
    specs = by_spec(rows)
    before = [mean_over_seeds(original_rows(column.select(rows))) for column in columns]
    after = {
        name: [mean_over_seeds(erased_rows(column.select(own))) for column in columns]
        for name, own in specs.items()
    }
    bold = [
        _best(column, {name: means[i] for name, means in after.items()}, before[i])
        for i, column in enumerate(columns)
    ]
    lines = []
    if any(before):
        cells = (TableCell(c.format(value)) for c, value in zip(columns, before, strict=True))
        lines.append((TableCell("original"), *cells, TableCell("")))
    for name, own in specs.items():
        cells = (
            TableCell(column.format(after[name][i]), name in bold[i])
            for i, column in enumerate(columns)
        )
        lines.append((TableCell(name), *cells, TableCell(_measured_runs(columns, own))))
    return lines


def _best(
    column: Column, means: Mapping[str, SeedMean | None], before: SeedMean | None
) -> set[str]:
    """Specs with the best value or one whose interval overlaps the best one's.

    Empty for measures without queries or that count classes, and if there is nothing to compare with.
    """
    counted = {name: value for name, value in means.items() if value and value.n}
    comparable = len(counted) >= 2 and (before or not column.retained)
    if not comparable or column.measure in CLASS_COUNTS:
        return set()
    aim = before.mean if before and column.retained else 0.0
    low, high = min(counted.values(), key=lambda value: abs(value.mean - aim)).interval()
    intervals = {name: value.interval() for name, value in counted.items()}
    return {name for name, (start, end) in intervals.items() if start <= high and low <= end}


def _measured_runs(columns: Sequence[Column], rows: Sequence[CellMeasure]) -> str:
    """How many runs have a value, `5 of 6` if some have none."""
    planned = {(row.concepts, row.seed) for row in rows}
    measured = {
        (row.concepts, row.seed)
        for column in columns
        for row in erased_rows(column.select(rows))
        if row.value is not None
    }
    return f"{len(measured)} of {len(planned)}" if measured != planned else str(len(planned))


def _divergences(rows: Sequence[CellMeasure]) -> str:
    counts = Counter(row.spec for row in rows if row.reason == DIVERGED)
    runs = ", ".join(f"{spec} {count}" for spec, count in counts.items())
    return f" Diverged, ended with the last good weights: {runs} runs." if runs else ""
