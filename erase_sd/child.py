"""Work in a child process: its memory goes back to the system at its end, and its death ends no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .errors import RunError
from .termination import TerminatedError, end_with

P = ParamSpec("P")
T = TypeVar("T")


PACKAGE = Path(__file__).parent


class KilledError(RunError):
    """The child process was killed."""


def in_child(
    context: BaseContext,
    prepare: Callable[[], None],
    work: Callable[P, T],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """`prepare()`, then `work(...)` in a child process that ends with this one, and what the work returns.

    All of it has to be picklable. Raises what the work raises, and KilledError for a child that was killed.
    A signal to this process ends the child, which may write a checkpoint first.
    """
    with ProcessPoolExecutor(1, context, _begin, (prepare,)) as pool:
        try:
            return pool.submit(_call, work, arguments, options).result()
        except BrokenProcessPool:
            raise KilledError("the child process was killed (out of memory?)") from None
        except BaseException:  # a signal; leaving the block would wait for the work
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin(prepare: Callable[[], None]) -> None:
    if parent := multiprocessing.parent_process():
        end_with(parent)
    prepare()


def _call(work: Callable[..., T], arguments: tuple[Any, ...], options: dict[str, Any]) -> T:
    """The work; a signal ends the process, which would otherwise wait for more of it forever."""
    try:
        return work(*arguments, **options)
    except TerminatedError as error:
        os._exit(128 + error.signal)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def isolated(module: str, *arguments: str) -> list[str]:
    """The command that runs `main` of a module of this package in a new interpreter.

    `-P` keeps files of the working directory from being imported as modules.
    """
    code = f"import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, str(PACKAGE.parent), *arguments]
