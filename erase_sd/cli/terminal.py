"""Tables and progress bars in the terminal. rich is imported when something is printed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..sharing import writes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

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


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    lines: Sequence[Sequence[str | Text]],
    text_columns: int,
    caption: str = "",
    grouped: bool = False,
) -> None:
    """Prints a table without a frame; its first `text_columns` hold text, the others numbers.

    In a narrow terminal, text and headings wrap and columns move together. Numbers wrap only if that is
    not enough, and words break only if no other way is left; nothing is cut off. `grouped` separates
    lines whose first cells differ.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    wide = console.options.update_width(10_000)
    table = RichTable(title=title, caption=caption or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if i < text_columns else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for line, following in itertools.zip_longest(lines, lines[1:], fillvalue=("",)):
        cells = (Text(cell) if isinstance(cell, str) else cell for cell in line)
        table.add_row(*cells, end_section=grouped and str(line[0]) != str(following[0]))
    if console.measure(table, options=wide).maximum > console.width:
        _narrow(table, console.width, headings, lines, text_columns)
    console.print(table)


def _narrow(
    table: RichTable,
    width: int,
    headings: Sequence[str],
    lines: Sequence[Sequence[str | Text]],
    text_columns: int,
) -> None:
    """Gives the columns widths that fit into `width`, as `print_table` promises."""
    from rich.cells import cell_len  # a Chinese letter, for one, takes two columns

    columns = [[str(line[i]) for line in lines] for i in range(len(headings))]
    names = [[*heading.split(), *cells] for heading, cells in zip(headings, columns, strict=True)]
    words = [
        max(cell_len(word) for name in own for word in name.split()) for own in names[:text_columns]
    ]
    whole = [max(map(cell_len, own)) for own in names]
    for padding in (1, 0):
        room = width - (1 + padding) * len(columns) - 1 - sum(whole[text_columns:]) - sum(words)
        if room >= 0:
            for i in sorted(range(text_columns), key=lambda i: whole[i] - words[i]):
                more = min(room, whole[i] - words[i])
                words[i], room = words[i] + more, room - more
            widths: list[int | None] = [*words, *whole[text_columns:]]
            break
    else:  # numbers wrap, and their headings are broken before a name is
        numbers = columns[text_columns:]
        parts = [max((len(w) for cell in own for w in cell.split()), default=1) for own in numbers]
        fits = sum(words) + sum(parts) + len(columns) + 1 <= width
        widths = [*(words if fits else [None] * text_columns), *[None] * len(parts)]
    table.padding = (0, padding, 0, 0)
    for column, own in zip(table.columns, widths, strict=True):
        column.width = own


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
        print_table(console, table.title, table.headings, lines, table.text_columns, table.note)
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
