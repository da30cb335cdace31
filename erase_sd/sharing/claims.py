"""Pieces of work claimed by lock files: every process that sees the folder takes what is left."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from ..files import key_of, write_text
from ..runtime import Progress

POLL_SECONDS = 0.2


class Claims:
    """Claims in a folder that all processes see, on one machine or several.

    A process holds a claim while it works on the piece. The operating system releases the claims of a
    process that ends, however it ends, and another process takes the piece over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            self.began = Path(file.name).stat().st_mtime
            """When this process started, by the clock of the file system."""

    def take(
        self, names: Sequence[str], is_done: Callable[[int], bool], progress: Progress | None = None
    ) -> Iterator[int]:
        """Yields the numbers of the pieces that this process is to do, until all are done, by any process.

        The caller finishes a piece before it asks for the next number; from then on, `is_done` has to be
        true of that piece in every process.
        """
        left = dict(enumerate(names))
        while left:
            before = len(left)
            for number, name in list(left.items()):
                with self._claimed(name) as claimed:
                    if not claimed:
                        continue
                    if not is_done(number):
                        self._failed(name).unlink(missing_ok=True)
                        if progress:
                            progress(len(names) - len(left), len(names), name)
                        yield number
                    del left[number]
            if progress:
                waiting = "waiting for the other processes" if left else ""
                progress(len(names) - len(left), len(names), waiting)
            if len(left) == before:
                time.sleep(POLL_SECONDS)

    def fail(self, name: str, why: str) -> None:
        """Records that a piece failed, so that no process that is running now tries it again."""
        write_text(self._failed(name), why)

    def failure(self, name: str) -> str:
        """Why a piece has failed since this process started; empty if it has not."""
        path = self._failed(name)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= self.began:
                return path.read_text(encoding="utf-8")
        return ""

    def clear(self, names: Sequence[str]) -> None:
        """Removes the lock files of pieces that are done, and the folder if it holds nothing else.

        Others may be at work on pieces that are not among the `names`, and need their locks.
        """
        for name in names:
            self._lock(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _failed(self, name: str) -> Path:
        return self.folder / f"{key_of(name)}.failed"

    def _lock(self, name: str) -> Path:
        return self.folder / f"{key_of(name)}.lock"

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Whether this process has the piece to itself, until the end of the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self._lock(name))
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, FileNotFoundError):  # the folder is being removed
            yield False
            return
        except NotImplementedError:  # a file system without locks, which the stages report
            yield True
            return
        try:
            yield True
        finally:
            lock.release()
