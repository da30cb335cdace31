"""The comparison's tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ..scoring.table import markdown_table
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
        lines = [[f"**{c.text}**" if c.bold else c.text for c in line] for line in table.lines]
        own = markdown_table(table.headings, lines, table.text_columns)
        parts += [f"## {table.title}", "", own, "", *([table.note, ""] if table.note else [])]
    failed = [row for row in rows if row.measure == FAILED]
    if failed:
        reasons = [(r.concept, r.spec, str(r.seed), r.reason) for r in failed]
        own = markdown_table(("concept", "method", "seed", "reason"), reasons, text_columns=4)
        parts += ["## Failed", "", own, ""]
    return "\n".join(parts)
