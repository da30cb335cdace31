"""A run as one self-contained HTML page: verdict, images, tables, training curves, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..run import Run

__all__ = ["write", "write_all"]


def write(run: Run) -> Path:
    """Writes `report.html` into the run folder and returns its path.

    Files that are missing or damaged are named on the page, and the rest is shown. Raises RunError if
    the folder is not a run.
    """
    from .page import write_page

    return write_page(run).path


def write_all(runs: Sequence[Run]) -> list[Path]:
    """Writes the report of each run, then `runs/index.html`, which compares them.

    Raises RunError if a folder is not a run.
    """
    from .index import write_index
    from .page import write_page

    pages = [write_page(run) for run in runs]
    return [page.path for page in pages] + [write_index(pages)]
