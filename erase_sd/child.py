"""Work in a child process: its memory returns to the system when it ends, and its death kills no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, ParamSpec, TypeVar

from .errors import RunError
from .termination import TerminatedError, end_with

P = ParamSpec("P")
T = TypeVar("T")

PAUSE = 0.2  # seconds between two calls of `meanwhile`


class KilledError(RunError):
    """The child process was killed."""


def in_child(
    context: BaseContext,
    prepare: Callable[[], None],
    meanwhile: Callable[[], None] | None,
    work: Callable[P, T],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Calls `prepare()`, then `work(...)`, in a child process that ends with this one; returns its result.

    `meanwhile` is called in this process, again and again, until the child ends; everything else has to
    be picklable. Raises what the work raises, KilledError if the child was killed, and RunError in a
    process that may not have children. A signal to this process ends the child, which may write a
    checkpoint first.
    """
    if multiprocessing.current_process().daemon:
        raise RunError(
            "a daemonic process, such as a worker of multiprocessing.Pool, cannot start the process that "
            "this needs; use concurrent.futures.ProcessPoolExecutor"
        )
    with ProcessPoolExecutor(1, context, _begin, (prepare,)) as pool:
        try:
            result = pool.submit(_call, work, arguments, options)
            while meanwhile and not wait([result], PAUSE).done:
                meanwhile()
            return result.result()
        except BrokenProcessPool:
            raise KilledError("the child process was killed (out of memory?)") from None
        except BaseException:  # a signal; leaving the block would wait for the work
            for process in list(pool._processes.values()):  # not the program's other children
                process.terminate()
            raise


def _begin(prepare: Callable[[], None]) -> None:
    try:
        if parent := multiprocessing.parent_process():
            end_with(parent)
        prepare()
    except TerminatedError as error:
        os._exit(128 + error.signal)


def _call(work: Callable[..., T], arguments: tuple[Any, ...], options: dict[str, Any]) -> T:
    """Does the work; a signal ends the process, which would otherwise wait for more work forever."""
    try:
        return work(*arguments, **options)
    except TerminatedError as error:
        os._exit(128 + error.signal)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
