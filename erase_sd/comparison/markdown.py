"""The comparison's tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .rows import FAILED, Row
from .tables import Table

NOTE = (
    "Per cent, mean ± standard deviation over seeds; of several concepts, of their mean. Bold: the "
    "best, and what its 95 % interval (Wilson; prompts that seeds or concepts share count once) "
    "cannot tell from it; not where classes are counted, nor in sums. Best is the lowest of what is to go, and of what is to stay the closest to "
    "the original's: a rate above it is fine-tuning, not preservation. Table numbers are the "
    "CLIPErase paper's."
)


def markdown(made: Sequence[Table], rows: Sequence[Row], command: str = "") -> str:
    """The tables in Markdown, above them the command, and below them what failed and why."""
    parts = ["# Comparison", "", *([f"    {command}", ""] if command else []), NOTE, ""]
    for table in made:
        rule = "|---" * table.words + "|--:" * (len(table.headings) - table.words) + "|"
        parts += [f"## {table.title}", "", _line(table.headings), rule]
        parts += [
            _line([f"**{e.text}**" if e.bold else e.text for e in line]) for line in table.lines
        ]
        parts += ["", *([table.note, ""] if table.note else [])]
    failed = [row for row in rows if row.measure == FAILED]
    if failed:
        parts += [
            "## Failed",
            "",
            _line(("concept", "method", "seed", "reason")),
            "|---|---|--:|---|",
        ]
        parts += [_line((r.concept, r.spec, str(r.seed), r.reason)) for r in failed]
        parts.append("")
    return "\n".join(parts)


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(word.replace('|', chr(92) + '|') for word in words)} |"
