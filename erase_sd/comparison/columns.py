"""Columns of the comparison's tables: what each selects and how it prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .rows import CellMeasure, Group, SeedMean

RETAINED_GROUPS: tuple[Group, ...] = ("retained_same", "retained_other", "retain")
"""Groups that should stay as they are; the others should drop to zero."""


@dataclass(frozen=True)
class Column:
    """What a column shows: one measure over some groups, for all concepts or for one."""

    heading: str
    measure: str
    groups: tuple[Group | None, ...] = (None,)
    concept: str | None = None

    def select(self, rows: Iterable[CellMeasure]) -> list[CellMeasure]:
        """The rows that belong to this column."""
        return [
            row
            for row in rows
            if row.measure == self.measure
            and row.group in self.groups
            and self.concept in (None, row.concept)
        ]

    @property
    def retained(self) -> bool:
        """Whether the best value is the one closest to the original's, rather than the lowest."""
        return self.groups[0] in RETAINED_GROUPS

    def format(self, value: SeedMean | None) -> str:
        """Shares in per cent, anything else as it is."""
        if value is None:
            return "-"
        scale, digits = (1, 0) if self.groups == (None,) else (100, 1)
        text = f"{scale * value.mean:,.{digits}f}"
        return text if value.spread is None else f"{text} ± {scale * value.spread:,.{digits}f}"


COSTS = (
    Column("seconds", "unlearn_seconds"),
    Column("peak memory, MB", "peak_memory_mb"),
    Column("steps", "steps"),
    Column("residual similarity", "residual_concept_similarity", ("forget",)),
    Column("retained fidelity", "retained_fidelity", ("retain",)),
)
RETAINED = (
    Column("retained, same prompts", "detection_rate", ("retained_same",)),
    Column("retained, other prompts", "detection_rate", ("retained_other",)),
)


def forget_and_retain(measure: str, heading: str) -> list[Column]:
    """Two columns of a measure, one for each concept set."""
    groups: tuple[Group, ...] = ("forget", "retain")
    return [Column(f"{heading}, {group}", measure, (group,)) for group in groups]
