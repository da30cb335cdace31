"""The run folder: what the stages leave for one another, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import runtime
from .data.concept import Concept
from .errors import RunError, SettingError
from .files import read_json, write_json

RUNS = Path("runs")


def folder_of(run: str | Path | None, concepts: tuple[str, ...] = ()) -> Path:
    """`runs/<name>` for a plain name, the folder itself for a path; the concepts name it else."""
    if run is None:
        run = "+".join(re.sub(r"[\W_]+", "-", c.lower()).strip("-") for c in concepts)
    if not str(run).strip():
        raise SettingError("--run: needs a name or a folder, got an empty one")
    path = Path(run)
    return path if path.parent != Path() else RUNS / path


class Run:
    """A run folder. Stages read with `manifest`, and write inside `with run.stage(...)`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def manifest(self) -> dict[str, Any]:
        """`run.json`; RunError where there is none."""
        if not (self.folder / "run.json").is_file():
            raise RunError(f"{self.folder}: no run folder (no run.json); unlearn first")
        manifest = read_json(self.folder / "run.json")
        stages = manifest.get("stages") if isinstance(manifest, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
            raise RunError(f"{self.folder / 'run.json'}: damaged, its stages cannot be read")
        return dict(manifest)

    def status(self, stage: str) -> str:
        """`missing`, `running` (interrupted, unless somebody runs it now) or `done`."""
        if not (self.folder / "run.json").is_file():
            return "missing"
        return str(self.manifest["stages"].get(stage, {}).get("status", "missing"))

    def require(self, stage: str, hint: str) -> dict[str, Any]:
        """The manifest, where `stage` is done; RunError with `hint` otherwise."""
        if self.status(stage) != "done":
            raise RunError(f"{self.folder}: {stage} is {self.status(stage)}; {hint}")
        return self.manifest

    def update(self, **fields: Any) -> None:
        """Merges `fields` into `run.json`."""
        manifest = self.manifest if (self.folder / "run.json").is_file() else {"stages": {}}
        write_json(self.folder / "run.json", manifest | fields)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """The one writer's lock. The system lets go of it when its process ends, however it ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("a+", encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{self.folder}: cannot be written ({reason})") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunError(
                    f"{self.folder}: in use by {file.read().strip() or 'another process'}"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    @contextlib.contextmanager
    def stage(self, name: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Runs one stage under the lock: `running` with its settings first, `done` at the end.

        Yields the stage's entry, to add results to. What later stages left rests on this one and is
        no longer `done` from here on. Raises RunError, naming what differs, where an unlearning that
        was interrupted would go on with other settings.
        """
        with self.lock():
            stages = self.manifest["stages"] if (self.folder / "run.json").is_file() else {}
            before = stages.get(name, {})
            if name == "unlearn" and before:
                refuse_other(self.folder, name, before.get("settings", {}), settings)
            entry: dict[str, Any] = {"status": "running", "settings": settings}
            order = ("unlearn", "generate", "score")
            kept = {key: stages[key] for key in order[: order.index(name)] if key in stages}
            self.update(stages=kept | {name: entry}, versions=runtime.versions())
            began = time.monotonic()
            yield entry
            entry |= {
                "status": "done",
                "seconds": round(time.monotonic() - began, 1),
                "peak_memory_mb": round(runtime.peak_memory() / 1e6),
            }
            self.update(stages=kept | {name: entry})


def concepts_of(manifest: dict[str, Any]) -> tuple[Concept, ...]:
    """The concepts that a run erased."""
    stored = manifest["stages"]["unlearn"]["settings"]["concepts"]
    return tuple(Concept(c["name"], tuple(c["synonyms"]), tuple(c["keep_senses"])) for c in stored)


def refuse_other(folder: Path, stage: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """RunError where a stage would go on, or be taken over, with other settings than it began with."""
    for field in sorted({*before, *now}):
        if before.get(field) != now.get(field):
            raise RunError(
                f"{folder}: {stage} began with {field} {_brief(before.get(field))}, now it is "
                f"{_brief(now.get(field))}; use the same, name another --run, or remove the folder"
            )


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
