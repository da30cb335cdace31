"""Tables and progress bars in the terminal. rich is imported when something is printed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..sharing import writes
from .tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..comparison.tables import Table
    from ..methods.descriptions import MethodDescription
    from ..run.measurements import EvaluationRecord, RateComparison, ScoresRecord


def console_for_tables(file_width: int = 160) -> Console:
    """The terminal; for a file, lines of `file_width`, unless COLUMNS gives another width."""
    from rich.console import Console

    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=file_width)


def rates_table(scores: ScoresRecord, rates: Sequence[RateComparison]) -> None:
    """Prints detection rates, `scores`' note below them."""
    from rich.text import Text

    from ..scoring.table import note_of, table_of

    headings, lines = table_of(rates)
    console = console_for_tables()
    print_table(console, "Detection rates", headings, lines, text_columns=2)
    console.print(Text(note_of(scores)))


def evaluation_table(record: EvaluationRecord) -> None:
    """Prints the CLIP-side measures, with a note on the models and data behind them."""
    from rich.text import Text

    from ..evaluation.stage import EVALUATION_HEADINGS, evaluation_lines, evaluation_note

    console, lines = console_for_tables(), evaluation_lines(record)
    print_table(console, "CLIP-side measures", EVALUATION_HEADINGS, lines, 2, grouped=True)
    console.print(Text(evaluation_note(record)))


def facts_table(title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, one pair per line."""
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(Column(), Column(overflow="fold"), title=title, show_header=False)
    for name, value in lines:
        table.add_row(Text(name), Text(value))
    Console().print(table)


def methods_list(descriptions: Sequence[MethodDescription]) -> None:
    """Prints methods, each with its hyperparameters below it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    for method in descriptions:
        console.print(Text(method.name, style="bold"))
        training = f"Trains {method.trained_parameters}"
        if method.learning_rate:
            training += f"; learning rate {method.learning_rate:g}, {method.steps} steps"
        facts = "\n".join(filter(None, (method.citation, method.about, f"{training}.")))
        console.print(Padding(Text(facts), (0, 0, 0, 2)))
        table = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)  # names are whole, however narrow the terminal
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for parameter in method.hyperparameters:
            cells = (parameter.name, str(parameter.default), parameter.meaning)
            table.add_row(*map(Text, cells))
        console.print(Padding(table, (0, 0, 1, 4)))


def comparison_tables(tables: Sequence[Table]) -> None:
    """Prints a comparison's tables and how to read them."""
    from rich.text import Text

    from ..comparison.markdown import READING_NOTE

    console = console_for_tables(file_width=240)
    for table in tables:
        lines = [
            [Text(cell.text, style="bold" if cell.bold else "") for cell in line]
            for line in table.lines
        ]
        print_table(console, table.title, table.headings, lines, table.text_columns)
        if table.note:
            console.print(Text(f"{table.note}\n"))
    console.print(Text(READING_NOTE))


class Bar:
    """A progress bar on stderr with speed and remaining time; none if `quiet`, not in a terminal, or not
    in the first of a launcher's processes."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.title = title
        console = Console(stderr=True)
        self.progress = Progress(
            *Progress.get_default_columns()[:3],
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not writes() or not console.is_terminal,
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=None, note="", speed="", count="")
        self.began = time.monotonic()
        return self

    def __call__(self, done: int, total: int, note: str, /) -> None:
        speed = f"{done / max(time.monotonic() - self.began, 1e-9):.1f}/s"
        count = f"{done}/{total}"
        self.progress.update(
            self.task, completed=done, total=total, note=note, speed=speed, count=count
        )

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
