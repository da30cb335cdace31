"""Ending on a signal, such as a cluster sends before it reclaims a machine: at once, or between steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

SIGNALS = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n))


class TerminatedError(BaseException):
    """A signal ends the program; `signal` is its number.

    Not an Exception, so that no `except Exception` stops it; files that are being replaced stay as they were.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


_deferring = False
_arrived: int | None = None


def handle_signals() -> None:
    """Has SIGTERM and SIGHUP raise TerminatedError; for programs, not for a library.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, _frame: object) -> None:
    global _arrived
    if not _deferring:
        raise TerminatedError(number)
    _arrived = number


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, signals are held back; the function that is yielded says whether one has arrived.

    TerminatedError is raised at the end of the block.
    """
    global _deferring, _arrived
    _deferring, _arrived = True, None
    try:
        yield lambda: _arrived is not None
    finally:
        _deferring = False
    if _arrived is not None:
        raise TerminatedError(_arrived)


def wait_for_signal(seconds: float) -> None:
    """Sleeps; raises TerminatedError as soon as a signal arrives, even where signals are deferred."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _arrived is not None:
            raise TerminatedError(_arrived)
        time.sleep(0.05)


def end_with(parent: BaseProcess) -> None:
    """Ends this process, as SIGTERM does, as soon as its parent has ended, even by SIGKILL."""

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
