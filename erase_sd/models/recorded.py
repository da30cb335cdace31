"""The models and data of a run, as its `run.json` names them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..run import Run
from .presets import Models, resolve


def models_of_run(run: Run, **overrides: Any) -> Models:
    """The models and data that the run was unlearned with; `overrides` that are set replace them.

    A preset other than the run's replaces everything. Without a run, the default preset. A `clip` takes
    the place of the run's without making it one that is alone. Relative paths are looked up in the
    working directory and in the folder of `runs/`, which is where `unlearn` is usually called.
    """
    clip = overrides.pop("clip", None)
    recorded = run.record.models if run.exists else {}
    if unknown := recorded.keys() - inspect.signature(resolve).parameters:
        raise RunError(f"{run.folder / 'run.json'}: models has an unknown key {min(unknown)!r}")
    overrides = {name: value for name, value in overrides.items() if value}
    if overrides.get("preset", recorded.get("preset")) != recorded.get("preset"):
        recorded = {}
    recorded = {name: _found(run, name, value) for name, value in recorded.items()}
    models = resolve(**recorded | overrides)
    return models.with_clips([clip] if clip else None)


def _found(run: Run, name: str, value: Any) -> Any:
    """A recorded argument of `resolve`, or the path that it stands for in the folder of `runs/`."""
    if isinstance(value, list):
        return [_found(run, name, each) for each in value]
    if name in ("preset", "revision") or value == "synth" or _is_there(value):
        return value
    path = run.folder.absolute().parent.parent / value
    return str(path) if _is_there(path) else value


def _is_there(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # in a folder that may not be read: not every command needs what is there
        return False
