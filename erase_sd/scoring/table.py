"""The table of rates for a reader, one line per comparison; tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from ..run.measurements import Change, Rate, RateComparison, ScoresRecord
from .rates import percent

HEADINGS = ("run", "object", "n", "original %", "erased %", "change", "p")
REFERENCE_HEADINGS = ("reference %", "erased - reference", "p vs. reference")
NESTED = {
    "original": Rate,
    "erased": Rate,
    "change": Change,
    "reference": Rate,
    "reference_change": Change,
}
"""Fields of a comparison that are several columns of `scores.csv`, such as `original_low`."""


def table_of(rates: Sequence[RateComparison]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings and lines; with columns for the reference if any comparison has one."""
    with_reference = any(rate.reference for rate in rates)
    lines = [
        [
            rate.run,
            object_of(rate),
            str(rate.erased.n),
            percent(rate.original, 1),
            percent(rate.erased, 1),
            *_change(rate.change),
        ]
        + _reference(rate) * with_reference
        for rate in rates
    ]
    return HEADINGS + REFERENCE_HEADINGS * with_reference, lines


def object_of(rate: RateComparison) -> str:
    """The detected objects in words: "apple", "retained, same prompts", "dog, look-alike prompts"."""
    name = rate.concept if rate.group == "target" else rate.class_name or "retained"
    if rate.kind != "plain":
        return f"{name}, {rate.kind} prompts"
    prompts = {"target": "", "retained_same": ", same prompts", "retained_other": ", other prompts"}
    return name + prompts[rate.group]


def _reference(rate: RateComparison) -> list[str]:
    if rate.reference is None or rate.reference_change is None:
        return [""] * len(REFERENCE_HEADINGS)
    return [percent(rate.reference, 1), *_change(rate.reference_change)]


def _change(change: Change) -> tuple[str, str]:
    return f"{100 * change.difference:+.1f}", f"{change.p_value:.1g}"


def note_of(scores: ScoresRecord) -> str:
    """How to read the table, and which detectors it rests on."""
    notes = [
        f"Rates of images with a detection of probability {scores.threshold} or more; in brackets the "
        "95 % Wilson interval; p: McNemar's exact test on the same prompts and seeds."
    ]
    if any(rate.reference for rate in scores.rates):
        notes.append(
            "Reference: the original model on the concept-removed prompts; its last two columns "
            "compare the erased model with it."
        )
    notes.append(f"Detector: {'; '.join(map(str, scores.detectors))}.")
    return " ".join(notes)


def markdown(scores: ScoresRecord) -> str:
    """The table in Markdown, with its note."""
    return f"{markdown_table(*table_of(scores.rates), text_columns=2)}\n\n{note_of(scores)}\n"


def markdown_table(
    headings: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int
) -> str:
    """A table in Markdown; its first `text_columns` hold text, the others numbers."""
    rule = "|" + "---|" * text_columns + "--:|" * (len(headings) - text_columns)
    rows = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        for cells in (headings, *lines)
    ]
    return "\n".join([rows[0], rule, *rows[1:]])


def csv_columns() -> list[str]:
    """Columns of `scores.csv`."""
    columns = []
    for field in fields(RateComparison):
        inner = fields(NESTED[field.name]) if field.name in NESTED else ()
        columns += [f"{field.name}_{f.name}" for f in inner] or [field.name]
    return columns


def csv_row(rate: RateComparison) -> dict[str, Any]:
    """A comparison as a row of `scores.csv`; without a reference, its columns are left out."""
    row: dict[str, Any] = {}
    for name, value in asdict(rate).items():
        if isinstance(value, dict):
            row |= {f"{name}_{inner}": v for inner, v in value.items()}
        elif name not in NESTED:
            row[name] = value
    return row
