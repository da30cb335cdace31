"""The batches of one pass, shared out among processes; the first process alone writes the run."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .batch import ImageBatch, generate_pngs
from .cache import cached_batch, store_batch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FOLDER = ".batches"
"""Folder in the run in which the other processes leave their batches for the first."""
POLL_SECONDS = 0.05


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
        number, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        return cls(run_folder / FOLDER, number, count)

    @property
    def writes(self) -> bool:
        """Whether this process writes the run."""
        return self.number == 0

    def pngs(self, index: int, batch: ImageBatch, pipe: DiffusionPipeline) -> list[bytes]:
        """The images of the pass's batch number `index`, if this process is to write or to generate it.

        The writer waits for batches of other processes. The launcher ends all if one of them fails.
        """
        size = len(batch.texts)
        if index % self.count != self.number:
            while self.writes and not (stored := cached_batch(self.folder, batch.key, size)):
                time.sleep(POLL_SECONDS)
            return stored if self.writes else []
        if self.count > 1 and (stored := cached_batch(self.folder, batch.key, size)):
            return stored  # left by an interrupted pass
        pngs = generate_pngs(batch, pipe)
        if not self.writes:
            store_batch(self.folder, batch.key, pngs)
        return pngs

    def clear(self) -> None:
        """Removes what the other processes left, once the run holds all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
