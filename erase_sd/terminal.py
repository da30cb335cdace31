"""What the terminal shows: tables and progress bars. rich is imported when something is shown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rates import Row


def rates_table(rows: list[Row], note: str) -> None:
    """Prints detection rates, `note` below them."""
    from rich.console import Console
    from rich.table import Table

    from .scoring import HEADINGS, cells

    table = Table(title="Detection rates", caption=note)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i < 2 else "right")
    for line in cells(rows):
        table.add_row(*line)
    Console().print(table)


def facts_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Prints what is known of something, a line a fact."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=False)
    for what, value in lines:
        table.add_row(Text(what), Text(value))
    Console().print(table)


class Bar:
    """A progress bar with rate and time left, on stderr; silent where that is no terminal, and with `quiet`."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.title = title
        console = Console(stderr=True)
        self.progress = Progress(
            *Progress.get_default_columns()[:3],
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=None, note="", rate="")
        self.began = time.monotonic()
        return self

    def __call__(self, done: int, of: int, note: str) -> None:
        rate = f"{done / max(time.monotonic() - self.began, 1e-9):.1f}/s"
        self.progress.update(self.task, completed=done, total=of, note=note, rate=rate)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
