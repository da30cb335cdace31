"""Ending on a signal, as a cluster sends it before it takes the machine away: at once, or between steps."""

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

    Not an Exception, so that nothing survives it: files that are being written stay as they were.
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
    """Inside, a signal waits; the function that is yielded tells whether one did.

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
    """Waits; raises TerminatedError as soon as a signal arrives, even where signals are deferred."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _arrived is not None:
            raise TerminatedError(_arrived)
        time.sleep(0.05)


def end_with(parent: BaseProcess) -> None:
    """Has this process end, as on SIGTERM, as soon as its parent has, even by SIGKILL."""

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
