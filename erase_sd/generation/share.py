"""The batches of one pass, shared out among processes; the first process alone writes the run."""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from .. import runtime
from ..errors import RunError
from .batch import ImageBatch, Pngs, generate_pngs
from .cache import cached_batch, store_batch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FOLDER = ".batches"
"""Folder in the run in which the other processes leave their batches for the first."""
POLL_SECONDS = 0.05
ABSENT_SECONDS = 300.0
"""Wait for a batch after which the writer checks whether the process that owes it is still there."""
_NO_LOCK = (filelock.Timeout, OSError, NotImplementedError)
"""What FileLock raises if another process has the lock, or the file system has no locks."""


@dataclass(frozen=True)
class Share:
    """This process's share: every `count`-th batch.

    What a batch holds does not depend on `count`, and neither do the images.
    """

    folder: Path
    number: int = 0
    count: int = 1

    @classmethod
    def of_process(cls, run_folder: Path) -> Share:
        """The share of this process, by the variables that `erase-sd launch` and torchrun set."""
        return cls(run_folder / FOLDER, *runtime.processes())

    @property
    def writes(self) -> bool:
        """Whether this process writes the run."""
        return self.number == 0

    def pngs(
        self, index: int, batch: ImageBatch, pipe: DiffusionPipeline, stopped: threading.Event
    ) -> Pngs:
        """Generates batch number `index` of the pass if it is this process's; the result encodes it.

        For another process's batch, the writer's result waits for that process. It raises CancelledError
        once `stopped` is set, and RunError if that process is not there; if it fails, the launcher ends all.
        """
        size = len(batch.texts)
        if (owner := index % self.count) != self.number:
            wait = functools.partial(self._from_other, owner, batch.key, size, stopped)
            return wait if self.writes else list
        if self.count > 1 and (stored := cached_batch(self.folder, batch.key, size)):
            return lambda: stored  # left by an interrupted pass
        pngs = generate_pngs(batch, pipe)
        return pngs if self.writes else functools.partial(self._leave, batch.key, pngs)

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Inside, a lock shows the writer that this process is there; it is released however the process ends."""
        lock = filelock.FileLock(self._presence(self.number))
        with contextlib.suppress(*_NO_LOCK):
            lock.acquire(blocking=False)
        try:
            yield
        finally:
            lock.release()

    def _presence(self, number: int) -> Path:
        """Lock of a process; outside of `folder`, which the writer removes at the end."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return self.folder.with_name(f"{FOLDER}-{number}.lock")

    def _leave(self, key: str, pngs: Pngs) -> list[bytes]:
        """Stores a batch for the writer."""
        batch = pngs()
        store_batch(self.folder, key, batch)
        return batch

    def _from_other(
        self, number: int, key: str, size: int, stopped: threading.Event
    ) -> list[bytes]:
        """A batch of process `number`, once it has stored it."""
        began = time.monotonic()
        while not (stored := cached_batch(self.folder, key, size)):
            if stopped.wait(POLL_SECONDS):
                raise CancelledError
            if time.monotonic() - began > ABSENT_SECONDS and self._is_absent(number):
                raise RunError(
                    f"process {number + 1} of {self.count} is not there (RANK and WORLD_SIZE in the "
                    "environment); start all with erase-sd launch, or unset both"
                )
        return stored

    def _is_absent(self, number: int) -> bool:
        """Whether nobody holds the lock of process `number`."""
        try:
            with filelock.FileLock(self._presence(number), blocking=False):
                return True
        except _NO_LOCK:
            return False

    def clear(self) -> None:
        """Removes what the other processes left, once the run holds all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for number in range(1, self.count):
            self._presence(number).unlink(missing_ok=True)
