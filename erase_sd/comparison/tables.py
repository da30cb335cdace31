"""The comparison's tables: pure functions of tidy rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from .rows import DIVERGED, Row, Stat, by_spec, erased, originals, stat

RETAIN = ("retained_same", "retained_other", "retain")
"""Groups of what is to stay; the others hold what is to go."""
OF_CLASSES = ("zero_shot_retrieval",)
"""Measures that count classes: one to forget for each concept, so that everything would tie."""
BOTH_NOTE = (
    "Both: the harmonic mean of the share of the concept that went and of the share of the others "
    "that is kept (mean of the two columns, no more than all), as shares of the original's rates. On "
    "prompts from the validation images it chooses settings; on any other it only sums up."
)
COSTS_NOTE = (
    "Of unlearning alone, mean ± standard deviation over seeds; memory is the process's largest. "
    "Left and kept: the share of the concept that is left in the captions (below 0: they are repelled) "
    "and of the rest that is kept, in per cent, on the validation images."
)


@dataclass(frozen=True)
class Column:
    """What a column of a table shows: one measure of some groups, of all concepts or of one."""

    heading: str
    measure: str
    groups: tuple[str, ...] = ("",)
    concept: str | None = None

    def of(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that belong into it."""
        return [
            row
            for row in rows
            if row.measure == self.measure
            and row.group in self.groups
            and self.concept in (None, row.concept)
        ]

    def show(self, value: Stat | None) -> str:
        """A share in per cent, anything else as it is."""
        if value is None:
            return "-"
        scale, digits = (1, 0) if self.groups == ("",) else (100, 1)
        text = f"{scale * value.mean:,.{digits}f}"
        return text if value.spread is None else f"{text} ± {scale * value.spread:,.{digits}f}"


COSTS = (
    Column("seconds", "unlearn_seconds"),
    Column("peak memory, MB", "peak_memory_mb"),
    Column("steps", "steps"),
    Column("left", "validation_forget", ("forget",)),
    Column("kept", "validation_retain", ("retain",)),
)


@dataclass(frozen=True)
class Entry:
    """One field of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table for a reader."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[Entry, ...], ...]
    words: int = 1
    """How many columns, from the left, hold words; the others hold numbers."""
    note: str = ""
    """What holds of this table alone."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """Every table that the rows can fill, in the order of the papers' questions."""
    single = [row for row in rows if row.size == 1] or list(rows)
    concepts = list(dict.fromkeys(row.concept for row in single))
    target = [Column(word, "detection_rate", ("target",), word) for word in concepts]
    everything = [Column("all", "detection_rate", ("target",))] if len(concepts) > 1 else []
    others = [
        Column("others, same captions", "detection_rate", ("retained_same",)),
        Column("others, elsewhere", "detection_rate", ("retained_other",)),
    ]
    zero_shot = _sides("zero_shot_prediction", "prediction")
    images = [c for k in (1, 5, 10) for c in _sides(f"image_retrieval_r{k}", f"R@{k}")]
    texts = [c for k in (1, 5, 10) for c in _sides(f"text_retrieval_r{k}", f"R@{k}")]
    short = [Column("target", "detection_rate", ("target",)), *others, *zero_shot, *images[:2]]
    methods = dict.fromkeys(row.method for row in single)
    made = [
        _with_both(
            _table("Detection rates (Table 6)", [*target, *everything, *others], single), single
        ),
        _table(
            "Zero-shot prediction and retrieval (Table 2)",
            [*zero_shot, *_sides("zero_shot_retrieval", "retrieval")],
            single,
        ),
        _table("Image retrieval, caption to image (Table 3)", images, single),
        _table("Text retrieval, image to caption (Table 3)", texts, single),
        *(
            _with_both(_table(f"{method}: what its settings buy (Table 4)", short, part), part)
            for method in methods
            if len(by_spec(part := [row for row in single if row.method == method])) > 1
        ),
        _by_size("Several concepts in one run (Figure 3)", short, rows),
        _table("Time and memory", COSTS, rows, COSTS_NOTE + _diverged(rows)),
    ]
    return [table for table in made if table]


def _sides(measure: str, heading: str) -> list[Column]:
    return [Column(f"{heading}, {group}", measure, (group,)) for group in ("forget", "retain")]


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], note: str = ""
) -> Table | None:
    """A line for the original, where it was measured too, and one for each spec.

    Columns without a value are left out; None where that is all of them.
    """
    filled = [column for column in columns if stat(erased(column.of(rows)))]
    if not filled:
        return None
    headings = ("method", *(column.heading for column in filled), "runs")
    return Table(title, headings, tuple(_lines(filled, rows)), note=note)


def _with_both(table: Table | None, rows: Sequence[Row]) -> Table | None:
    """The table with a column, last but one, of what each spec's erasing and keeping come to."""
    found = {name: _both(part) for name, part in by_spec(rows).items()}
    if not table or not any(value is not None for value in found.values()):
        return table
    lines = []
    for *fields, runs in table.lines:
        value = found.get(fields[0].text)
        shown = "" if value is None else f"{100 * value:.1f}"
        lines.append((*fields, Entry(shown), runs))
    headings = (*table.headings[:-1], "both", table.headings[-1])
    return dataclasses.replace(table, headings=headings, lines=tuple(lines), note=BOTH_NOTE)


def _both(rows: Sequence[Row]) -> float | None:
    """Harmonic mean of the shares that went and that is kept; None where one was not measured."""
    shares = {}
    for group in ("target", "retained_same", "retained_other"):
        mine = [row for row in rows if row.measure == "detection_rate" and row.group == group]
        before, after = stat(originals(mine)), stat(erased(mine))
        if before and after and before.mean:
            shares[group] = min(after.mean / before.mean, 1.0)
    kept = [share for group, share in shares.items() if group in RETAIN]
    if "target" not in shares or not kept:
        return None
    went, stays = 1 - shares["target"], fmean(kept)
    return 2 * went * stays / (went + stays) if went + stays else 0.0


def _by_size(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table | None:
    """The lines of `_table` for each number of concepts in one run, of the specs that have runs of
    several numbers; None where there is none."""
    swept = [part for part in by_spec(rows).values() if len({row.size for row in part}) > 1]
    rows = [row for part in swept for row in part]
    sizes = sorted({row.size for row in rows})
    filled = [column for column in columns if stat(erased(column.of(rows)))]
    if not filled:
        return None
    lines = [
        (Entry(str(size)), *line)
        for size in sizes
        for line in _lines(filled, [row for row in rows if row.size == size])
    ]
    headings = ("concepts", "method", *(column.heading for column in filled), "runs")
    return Table(title, headings, tuple(lines), words=2)


def _lines(columns: Sequence[Column], rows: Sequence[Row]) -> list[tuple[Entry, ...]]:
    """The original's line and each spec's; the last entry is how many of its runs were measured."""
    specs = by_spec(rows)
    before = [stat(originals(column.of(rows))) for column in columns]
    stats = {
        name: [stat(erased(column.of(part))) for column in columns] for name, part in specs.items()
    }
    bold = [
        _best(column, {name: found[i] for name, found in stats.items()}, before[i])
        for i, column in enumerate(columns)
    ]
    lines = []
    if any(before):
        shown = (Entry(c.show(value)) for c, value in zip(columns, before, strict=True))
        lines.append((Entry("original"), *shown, Entry("")))
    for name, part in specs.items():
        shown = (
            Entry(column.show(stats[name][i]), name in bold[i]) for i, column in enumerate(columns)
        )
        lines.append((Entry(name), *shown, Entry(_runs(columns, part))))
    return lines


def _best(column: Column, stats: dict[str, Stat | None], before: Stat | None) -> set[str]:
    """Names of the best value and of all that its interval overlaps; none where nothing is counted, or
    a handful of classes, and where there is nothing to be better than."""
    counted = {name: found for name, found in stats.items() if found and found.n}
    if (
        column.measure in OF_CLASSES
        or len(counted) < 2
        or (column.groups[0] in RETAIN and not before)
    ):
        return set()
    aim = before.mean if before and column.groups[0] in RETAIN else 0.0
    low, high = min(counted.values(), key=lambda found: abs(found.mean - aim)).interval()
    intervals = {name: found.interval() for name, found in counted.items()}
    return {name for name, (least, most) in intervals.items() if least <= high and low <= most}


def _runs(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """How many of the runs have a value: fewer than there are, and the means are of other things."""
    planned = {(row.concept, row.seed) for row in rows}
    measured = {
        (row.concept, row.seed)
        for column in columns
        for row in erased(column.of(rows))
        if row.value is not None
    }
    return f"{len(measured)} of {len(planned)}" if measured != planned else str(len(planned))


def _diverged(rows: Sequence[Row]) -> str:
    ended = Counter(row.spec for row in rows if row.reason == DIVERGED)
    runs = ", ".join(f"{spec} {count}" for spec, count in ended.items())
    return f" Diverged, and ended on the last good weights: {runs} runs." if runs else ""
