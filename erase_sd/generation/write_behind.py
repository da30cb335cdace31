"""Finished batches are written by a thread while the next ones are generated."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType


class WriteBehind:
    """Runs tasks in one thread, in the order in which they are added; at most `most` are unfinished.

    Used in a `with` block, whose end waits for all tasks and raises the error of the first that failed;
    those after it are not run. If the block itself fails, tasks that were added still run to their end,
    up to one that waits for another process (`stopped`), so that each has done all of its work or none.
    """

    def __init__(self, most: int) -> None:
        self.stopped = threading.Event()
        """Set once nobody waits for results any more; a task that waits then raises CancelledError."""
        self._most = most
        self._unfinished: deque[tuple[Future[None], Callable[[], object] | None]] = deque()
        self._failed = False
        self._thread = ThreadPoolExecutor(1)

    def add(self, task: Callable[[], object], then: Callable[[], object] | None = None) -> None:
        """Adds a task as soon as fewer than `most` are unfinished; raises the error of an earlier one.

        `then` is called after the task, in the thread of the caller.
        """
        self._finish_all_but(self._most - 1)
        self._unfinished.append((self._thread.submit(self._run, task), then))

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish_all_but(0)
        finally:
            self.stopped.set()
            self._thread.shutdown()
        if isinstance(error, Exception):  # not a signal; what failed earlier is raised instead
            for future, _then in self._unfinished:
                with contextlib.suppress(CancelledError):
                    future.result()

    def _finish_all_but(self, count: int) -> None:
        while len(self._unfinished) > count:
            future, then = self._unfinished.popleft()
            future.result()
            if then:
                then()

    def _run(self, task: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            task()
        except BaseException:
            self._failed = True
            raise
