"""Tables in the terminal, however narrow. rich is imported when one is printed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    lines: Sequence[Sequence[str | Text]],
    text_columns: int,
    grouped: bool = False,
) -> None:
    """Prints a table without a frame; its first `text_columns` hold text, the others numbers.

    In a narrow terminal, text and headings wrap and columns move together. If that is not enough,
    numbers wrap; if their headings would break even so, further columns follow below, each time beside
    the text. Words break only if no other way is left; nothing is cut off. `grouped` separates lines
    whose first cells differ.
    """
    for block in (blocks := _blocks(console.width, headings, lines, text_columns)):
        table = _table(
            console,
            [headings[i] for i in block],
            [[line[i] for i in block] for line in lines],
            text_columns,
            grouped,
        )
        table.title = title if block is blocks[0] else None
        console.print(table)


def _blocks(
    width: int, headings: Sequence[str], lines: Sequence[Sequence[str | Text]], text_columns: int
) -> list[list[int]]:
    """The columns of each block, as `print_table` promises; a single one if more would not help. A heading
    that is too wide beside the text breaks alone, in a block of its own."""
    words, cells = _widths(headings, lines)
    _, values = _widths([""] * len(headings), lines)
    numbers = range(text_columns, len(headings))

    def fits(own: Sequence[int], widths: Sequence[int]) -> bool:
        used = [*words[:text_columns], *(widths[i] for i in own)]
        return sum(used) + len(used) + 1 <= width

    if fits(numbers, words) or not all(fits([i], values) for i in numbers):
        return [list(range(len(headings)))]
    blocks: list[list[int]] = []
    for i in numbers:
        if not blocks or not fits([*blocks[-1], i], cells):
            blocks.append([])
        blocks[-1].append(i)
    return [[*range(text_columns), *block] for block in blocks]


def _widths(
    headings: Sequence[str], lines: Sequence[Sequence[str | Text]]
) -> tuple[list[int], list[int]]:
    """For each column, the width of its longest word, and of its longest cell or word of the heading."""
    from rich.cells import cell_len  # a Chinese letter, for one, takes two columns

    words, cells = [], []
    for i, heading in enumerate(headings):
        own = [*heading.split(), *(str(line[i]) for line in lines)]
        words.append(max((cell_len(word) for cell in own for word in cell.split()), default=1))
        cells.append(max(map(cell_len, own), default=1))
    return words, cells


def _table(
    console: Console,
    headings: Sequence[str],
    lines: Sequence[Sequence[str | Text]],
    text_columns: int,
    grouped: bool,
) -> RichTable:
    """A table of one block of columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if i < text_columns else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for line, following in itertools.zip_longest(lines, lines[1:], fillvalue=("",)):
        cells = (Text(cell) if isinstance(cell, str) else cell for cell in line)
        table.add_row(*cells, end_section=grouped and str(line[0]) != str(following[0]))
    wide = console.options.update_width(10_000)
    if console.measure(table, options=wide).maximum > console.width:
        _narrow(table, console.width, headings, lines, text_columns)
    return table


def _narrow(
    table: RichTable,
    width: int,
    headings: Sequence[str],
    lines: Sequence[Sequence[str | Text]],
    text_columns: int,
) -> None:
    """Gives the columns widths that fit into `width`, as `print_table` promises."""
    words, cells = _widths(headings, lines)
    text, numbers = range(text_columns), range(text_columns, len(headings))
    for padding, growing, least in (
        (1, text, [*words[:text_columns], *cells[text_columns:]]),
        (0, text, [*words[:text_columns], *cells[text_columns:]]),
        (0, numbers, words),
    ):
        room = width - (1 + padding) * len(least) - 1 - sum(least)
        if room >= 0:
            widths: list[int | None] = [*least]
            for i in sorted(growing, key=lambda i: cells[i] - words[i]):
                more = min(room, cells[i] - words[i])
                widths[i], room = least[i] + more, room - more
            break
    else:  # the headings of numbers are broken before a name is
        parts, _ = _widths([""] * len(numbers), [line[text_columns:] for line in lines])
        fits = sum(words[:text_columns]) + sum(parts) + len(words) + 1 <= width
        widths = [*(words[:text_columns] if fits else [None] * len(text)), *[None] * len(parts)]
    table.padding = (0, padding, 0, 0)
    for column, own in zip(table.columns, widths, strict=True):
        column.width = own
