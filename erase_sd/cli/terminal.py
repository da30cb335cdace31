"""What the terminal shows: tables and progress bars. rich is imported when something is shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as Shown

    from ..comparison.tables import Table
    from ..evaluation.stage import Evaluation
    from ..methods.descriptions import Page
    from ..scoring.rates import Row


def rates_table(rows: list[Row], note: str) -> None:
    """Prints detection rates, `note` below them."""
    from rich.console import Console
    from rich.text import Text

    from ..scoring.table import table_of

    headings, lines = table_of(rows)
    table = _narrow("Detection rates", headings, words=2)
    for line in lines:
        table.add_row(*line)
    Console().print(table, Text(note))


def evaluation_table(evaluation: Evaluation) -> None:
    """Prints the CLIP-side measures, with a note that says what they rest on."""
    from rich.console import Console
    from rich.text import Text

    from ..evaluation.stage import HEADINGS, cells

    table = _narrow("CLIP-side measures", HEADINGS, words=2)
    lines = cells(evaluation.rows)
    for line, after in zip(lines, [*lines[1:], [""]], strict=True):
        table.add_row(*line, end_section=line[0] != after[0])
    Console().print(table, Text(evaluation.note))


def _narrow(title: str, headings: Sequence[str], words: int, caption: str = "") -> Shown:
    """An empty table without side lines; its first `words` columns hold words, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Shown

    table = Shown(title=title, caption=caption or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        if heading == "method":
            table.add_column(heading, min_width=24, overflow="fold")
        else:
            table.add_column(heading, justify="left" if i < words else "right")
    return table


def facts_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Prints what is known of something, a line a fact."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=False)
    for what, value in lines:
        table.add_row(Text(what), Text(value))
    Console().print(table)


def methods_list(pages: list[Page]) -> None:
    """Prints methods, each with its settings below it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for page in pages:
        console.print(Text(page.name, style="bold"))
        costs = f"Trains {page.trained}"
        costs += f"; learning rate {page.rate:g}, {page.steps} steps." if page.rate else "."
        facts = "\n".join(filter(None, (page.citation, page.about, costs)))
        console.print(Padding(Text(facts), (0, 0, 0, 2)))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for setting in page.settings:
            table.add_row(Text(setting.name), Text(str(setting.default)), Text(setting.meaning))
        console.print(Padding(table, (0, 0, 1, 4)))


def grid_tables(tables: list[Table], note: str) -> None:
    """Prints a comparison's tables, `note` below the last. A file gets lines as long as they need."""
    from rich.console import Console
    from rich.text import Text

    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=240)
    for table in tables:
        shown = _narrow(table.title, table.headings, table.words, table.note)
        for line in table.lines:
            shown.add_row(*(Text(e.text, style="bold" if e.bold else "") for e in line))
        console.print(shown)
    console.print(Text(note))


class Bar:
    """A progress bar with rate and time left, on stderr; silent where that is no terminal, and with `quiet`."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.title = title
        console = Console(stderr=True)
        self.progress = Progress(
            *Progress.get_default_columns()[:3],
            TextColumn("{task.fields[count]}"),  # of nothing yet, it is empty
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=None, note="", rate="", count="")
        self.began = time.monotonic()
        return self

    def __call__(self, done: int, of: int, note: str) -> None:
        rate = f"{done / max(time.monotonic() - self.began, 1e-9):.1f}/s"
        count = f"{done}/{of}"
        self.progress.update(self.task, completed=done, total=of, note=note, rate=rate, count=count)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
