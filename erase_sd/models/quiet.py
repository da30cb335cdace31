"""transformers and diffusers without notices and progress bars, until the program has its own back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_before: dict[Any, tuple[int, bool]] = {}
"""By the logging module of a library: its verbosity, and whether it showed progress bars."""


def quiet_libraries() -> None:
    """Silences progress bars and notices of transformers, but not its errors; those of diffusers, slow
    to import, are silenced when a pipeline is opened."""
    from transformers.utils import logging

    silence(logging)


def silence(logging: Any) -> None:
    """Silences the library of this logging module."""
    _before.setdefault(logging, (logging.get_verbosity(), logging.is_progress_bar_enabled()))
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def restored_libraries() -> Iterator[None]:
    """Afterwards the libraries have the verbosity and progress bars that they had before; if something
    around this has silenced them, they stay silent for the rest of it."""
    outermost = not _before
    try:
        yield
    finally:
        while outermost and _before:
            logging, (verbosity, bars) = _before.popitem()
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
