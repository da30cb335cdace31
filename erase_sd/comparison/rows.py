"""Measurements of a comparison's cells, and their means over seeds. No files, no models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..data.pair import ConceptSet
from ..run.measurements import RateGroup
from ..run.records import Variant
from ..scoring.stats import wilson

ATTACK = "attack_"
"""What the measures of attacks begin with."""
FAILED = "failed"
"""Measure of a row that only states why its cell has no results."""
DIVERGED = "diverged"
"""Reason of a cell whose training diverged and that ended with its last good weights."""

Group = RateGroup | ConceptSet
SHARED_GROUPS: tuple[Group, ...] = ("retained_other", "retain")
"""Groups measured on nearly the same prompts and pairs in the runs of all concepts."""

COLUMNS = (
    "concept", "method", "overrides", "seed", "measure", "group", "variant", "value", "n", "low",
    "high", "reason",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CellMeasure:
    """One measurement of one cell, a row of `comparison.csv`."""

    concepts: tuple[str, ...]
    method: str
    overrides: str
    seed: int
    measure: str
    group: Group | None = None
    variant: Variant | None = None
    value: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    """Why the cell failed, or how its unlearning ended early."""

    @property
    def concept(self) -> str:
        """The concepts of the run as one name, `apple+chair`."""
        return "+".join(self.concepts)

    @property
    def spec(self) -> str:
        """Method and overrides as the user writes them, `cliperase:steps=200`."""
        return f"{self.method}:{self.overrides}" if self.overrides else self.method

    def as_row(self) -> dict[str, Any]:
        """The fields by `COLUMNS`."""
        return {column: getattr(self, column) for column in COLUMNS}


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds of the mean over concepts, with its spread over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation; None for a single seed."""
    n: int
    """Queries behind one seed's mean, 0 for measures without queries. Further seeds repeat the same
    prompts, and so do the concepts in SHARED_GROUPS; neither adds to `n`."""

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the mean as a share of `n`; conservative for means of values in 0-1."""
        return wilson(round(min(max(self.mean, 0), 1) * self.n), self.n)


def mean_over_seeds(rows: Iterable[CellMeasure]) -> SeedMean | None:
    """None if no row has a value."""
    by_seed: dict[int, list[CellMeasure]] = {}
    for row in rows:
        if row.value is not None:
            by_seed.setdefault(row.seed, []).append(row)
    means = [fmean(row.value or 0.0 for row in seed_rows) for seed_rows in by_seed.values()]
    if not means:
        return None
    spread = stdev(means) if len(means) > 1 else None
    return SeedMean(fmean(means), spread, round(fmean(map(_queries, by_seed.values()))))


def _queries(rows: list[CellMeasure]) -> int:
    """Distinct queries behind the rows of one seed."""
    separate = sum(row.n or 0 for row in rows if row.group not in SHARED_GROUPS)
    return separate + max((row.n or 0 for row in rows if row.group in SHARED_GROUPS), default=0)


def by_spec(rows: Iterable[CellMeasure]) -> dict[str, list[CellMeasure]]:
    """The rows of each spec, in order of appearance."""
    grouped: dict[str, list[CellMeasure]] = {}
    for row in rows:
        grouped.setdefault(row.spec, []).append(row)
    return grouped


def erased_rows(rows: Iterable[CellMeasure]) -> list[CellMeasure]:
    """Measurements of the erased model, costs of the unlearning included."""
    return [row for row in rows if row.variant in ("erased", None)]


def original_rows(rows: Iterable[CellMeasure]) -> list[CellMeasure]:
    """Measurements of the original model, once each, although the runs of every spec repeat them."""
    keyed = {(r.concepts, r.seed, r.measure, r.group): r for r in rows if r.variant == "original"}
    return list(keyed.values())
