"""The comparison's tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .rows import FAILED, CellMeasure
from .tables import Table

READING_NOTE = (
    "Per cent, mean ± standard deviation over seeds; over several concepts, of their mean. Bold: the "
    "best value and all that its 95 % Wilson interval does not tell apart from it (prompts shared by "
    "seeds or concepts count once); measures that count classes, and the harmonic mean, are not "
    "marked. Best is the lowest for what should be erased and the closest to the original for what "
    "should be retained: a rate above the original's is fine-tuning, not retention. Table numbers "
    "are those of the CLIPErase paper."
)


def tables_markdown(tables: Sequence[Table], rows: Sequence[CellMeasure], command: str = "") -> str:
    """The command, the tables, and the cells that failed with their reasons."""
    parts = ["# Comparison", "", *([f"    {command}", ""] if command else []), READING_NOTE, ""]
    for table in tables:
        numbers = len(table.headings) - table.text_columns
        rule = "|---" * table.text_columns + "|--:" * numbers + "|"
        parts += [f"## {table.title}", "", _line(table.headings), rule]
        parts += [
            _line(f"**{cell.text}**" if cell.bold else cell.text for cell in line)
            for line in table.lines
        ]
        parts += ["", *([table.note, ""] if table.note else [])]
    failed = [row for row in rows if row.measure == FAILED]
    if failed:
        headings = ("concept", "method", "seed", "reason")
        parts += ["## Failed", "", _line(headings), "|---|---|--:|---|"]
        parts += [_line((r.concept, r.spec, str(r.seed), r.reason)) for r in failed]
        parts.append("")
    return "\n".join(parts)


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
