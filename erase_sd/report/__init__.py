"""A run as one HTML page that opens from disk: verdict, pictures, tables, curves, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..run import Run

__all__ = ["write", "write_all"]


def write(run: Run) -> Path:
    """Writes `report.html` into the run folder and returns its path.

    Whatever is missing or damaged in the folder is named on the page and the rest is shown. Raises
    RunError where the folder is no run.
    """
    from .page import write_page

    return write_page(run).path


def write_all(runs: Sequence[Run]) -> list[Path]:
    """Writes the report of each run, and `runs/index.html` that compares them; the index last.

    Raises RunError where a folder is no run.
    """
    from .index import write_index
    from .page import write_page

    summaries = [write_page(run) for run in runs]
    return [summary.path for summary in summaries] + [write_index(summaries)]
