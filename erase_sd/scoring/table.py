"""The score's table for a reader: what both arms show, line by line."""

from __future__ import annotations

from collections.abc import Sequence

from .rates import Row, lines_of

HEADINGS = ("run", "looked for", "n", "original %", "erased %", "change", "p")
REFERENCE_HEADINGS = ("without it %", "erased less that", "its p")


def table_of(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings, and a line for each run, concept, kind of prompt and group: what both arms show, and
    the difference; where any row is of the reference arm, that and erased against it too."""
    lines = lines_of(rows)
    referred = any(reference for _, _, reference in lines)
    cells = []
    for before, after, reference in lines:
        cells.append(
            [
                after.run,
                _looked_for(after),
                str(after.n),
                _rate(before),
                _rate(after),
                *_change(after),
            ]
        )
        if referred:
            cells[-1] += [_rate(reference), *_change(reference)] if reference else [""] * 3
    return HEADINGS + REFERENCE_HEADINGS * referred, cells


def _looked_for(row: Row) -> str:
    if row.group == "target":
        return f"{row.concept}, {row.kind}" if row.kind else row.concept
    others, same = row.name or "others", row.group == "retained_same"
    if row.kind:
        return f"{others}, {row.kind} captions" if same else f"{others}, {row.kind}"
    return f"{others}, same captions" if same else f"{others}, elsewhere"


def _rate(row: Row) -> str:
    return f"{100 * row.rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def _change(row: Row) -> tuple[str, str]:
    assert row.difference is not None and row.p_value is not None
    return f"{100 * row.difference:+.1f}", f"{row.p_value:.1g}"
