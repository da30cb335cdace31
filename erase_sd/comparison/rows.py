"""Tidy rows of a comparison, and their means and spreads. No file, no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from ..scoring.rates import wilson

FAILED = "failed"
"""The measure of a row that only says why a cell has no others."""
DIVERGED = "diverged"
"""The reason of a cell whose unlearning left the finite numbers and ended on its last good weights."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of one cell, a line of `comparison.csv`. A cell that failed has a reason."""

    concept: str
    method: str
    overrides: str
    seed: int
    measure: str
    group: str = ""
    arm: str = ""
    value: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def spec(self) -> str:
        return f"{self.method}:{self.overrides}" if self.overrides else self.method

    @property
    def size(self) -> int:
        """How many concepts the run erases."""
        return self.concept.count("+") + 1


SHARED = ("retained_other", "retain")
"""Groups of which every concept's run sees nearly the same prompts and pairs."""
HEADER = tuple(field.name for field in dataclasses.fields(Row))


@dataclass(frozen=True)
class Stat:
    """Rows in short: the mean over seeds of the mean over concepts, and its spread over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation; None of one seed."""
    n: int
    """What a seed counts, its rows together; 0 of a measure that counts nothing. Other seeds count
    the same prompts again, and so do the concepts' rows of SHARED: that makes no more of them."""

    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean as a share of n (Wilson); for a mean of values in 0-1 too wide,
        never too narrow."""
        return wilson(round(min(max(self.mean, 0), 1) * self.n), self.n)


def stat(rows: Iterable[Row]) -> Stat | None:
    """None where no row has a value."""
    by_seed: dict[int, list[Row]] = {}
    for row in rows:
        if row.value is not None:
            by_seed.setdefault(row.seed, []).append(row)
    means = [fmean(row.value or 0.0 for row in part) for part in by_seed.values()]
    if not means:
        return None
    spread = stdev(means) if len(means) > 1 else None
    return Stat(fmean(means), spread, round(fmean(map(_counted, by_seed.values()))))


def _counted(rows: list[Row]) -> int:
    """What the rows of one seed count: of groups that all concepts share the most of any."""
    apart = sum(row.n or 0 for row in rows if row.group not in SHARED)
    return apart + max((row.n or 0 for row in rows if row.group in SHARED), default=0)


def by_spec(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each spec, in the order in which the specs come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.spec, []).append(row)
    return found


def erased(rows: Iterable[Row]) -> list[Row]:
    """The erased model's rows, and those that tell what the erasing cost."""
    return [row for row in rows if row.arm in ("erased", "")]


def originals(rows: Iterable[Row]) -> list[Row]:
    """The original's rows: every spec's runs hold the same ones, so each counts once."""
    keyed = {(r.concept, r.seed, r.measure, r.group): r for r in rows if r.arm == "original"}
    return list(keyed.values())
