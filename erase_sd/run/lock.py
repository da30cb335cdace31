"""The lock of a run folder: one writer at a time, and nothing left of a killed one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from ..checked import NO_LOCKS, sweep
from ..errors import RunError
from ..reading import read_bytes


@contextlib.contextmanager
def writer_lock(folder: Path, reader: bool = False) -> Iterator[None]:
    """The one writer's lock; the system releases it when the process ends, however it ends.

    Removes what a killed writer left. A `reader`, who keeps writers away, goes on without it in a folder
    that cannot be written. Raises RunError if another process has the lock, or, for a writer, if the
    folder cannot be written.
    """
    if reader and not os.access(folder, os.W_OK):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise RunError(f"{folder}: in use by {_writer(folder)}") from None
    except NotImplementedError:
        raise RunError(f"{folder}: {NO_LOCKS}; choose a run folder on another") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunError(f"{folder}: cannot be written ({why})") from None
    try:
        process = f"process {os.getpid()} on {socket.gethostname()}"
        (folder / ".writer").write_text(process, encoding="utf-8")
        for place in (folder, *folder.glob("images/*/"), *folder.glob("attacks/*/*/")):
            sweep(place, keep="report.html")  # which is written without the lock
        yield
    finally:
        (folder / ".writer").unlink(missing_ok=True)
        lock.release()


def _writer(folder: Path) -> str:
    try:
        return read_bytes(folder / ".writer").decode(errors="replace") or "another process"
    except (OSError, RunError):
        return "another process"
