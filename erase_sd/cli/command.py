"""A command with a help page that can be read in a narrow terminal."""

from __future__ import annotations

import shutil
from typing import Any

from typer.core import TyperCommand

FRAMED = 100
"""Width in columns from which help pages have frames."""


class Command(TyperCommand):
    """A command whose help has no frames in a terminal of fewer than FRAMED columns.

    The framed page has five columns, of which rich cuts names and defaults off ("--keep-se…") where they
    do not fit; the plain page has two, and wraps them.
    """

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:  # noqa: A002
        # The framed page would keep the docstring's own line breaks.
        paragraphs = (help or "").split("\n\n")
        joined = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        super().__init__(*args, help=joined, **settings)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help page, plain where there is too little room for the framed one."""
        if shutil.get_terminal_size().columns < FRAMED:
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)
        # Typer 0.20 escapes brackets for rich on plain pages too.
        formatter.buffer = [text.replace(r"\[", "[") for text in formatter.buffer]
