"""A stage that fails before it changed anything leaves the run as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files import write_bytes

_OWN = ("run.json", ".lock", ".writer")


@dataclass(frozen=True)
class RunBefore:
    """What a run folder held when a stage began."""

    folder: Path
    record: bytes | None
    """`run.json`; None if there was none."""
    files: Mapping[Path, tuple[int, int]]
    """Time of change (nanoseconds) and inode of everything else."""

    def restore(self) -> None:
        """Puts `run.json` back if nothing else has changed."""
        if _files_of(self.folder) != self.files:
            return
        if self.record is None:
            (self.folder / "run.json").unlink(missing_ok=True)
        else:
            write_bytes(self.folder / "run.json", self.record)


def run_before(folder: Path) -> RunBefore:
    """The present state of a run folder."""
    path = folder / "run.json"
    return RunBefore(folder, path.read_bytes() if path.is_file() else None, _files_of(folder))


def _files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    states = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process leaves its batches there
            if path.is_file() and path.name not in _OWN:
                state = path.stat()
                states[path] = (state.st_mtime_ns, state.st_ino)
    return states
