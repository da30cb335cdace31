"""One cell of a comparison: whether it is done, and its run from unlearning to evaluation."""

from __future__ import annotations

import dataclasses
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import runtime
from ..errors import EraseError
from ..evaluation import galleries as labelled
from ..evaluation import stage as evaluation
from ..files import hash_file, read_json
from ..models import presets
from ..run import Run
from .grid import Cell


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all cells share: where the models lie, and the images, of which there may be none."""

    places: dict[str, Any]
    """Arguments of `erase_sd.unlearn`: preset, model, revision, clip, data."""
    models: presets.Models
    origin: dict[str, Any]
    """What every unlearning begins with, as hashes; without the pairs that a run makes itself."""
    prompts: dict[str, Path]
    """A prompt file for each concept."""
    images_per_prompt: int
    dtype: str
    images: bool


def attempt(cell: Cell, shared: Shared) -> str:
    """Runs a cell; the reason where it fails, else nothing. A bug of one method ends no other."""
    try:
        _run(cell, shared)
    except EraseError as error:
        return " ".join(str(error).split())
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return " ".join(f"{type(error).__name__}: {error} ({where})".split())
    return ""


def _run(cell: Cell, shared: Shared) -> None:
    import erase_sd

    folder = cell.folder
    erase_sd.unlearn(
        cell.concepts, run=folder, seed=cell.seed, **cell.spec.settings, **shared.places
    )
    if shared.images:
        files = [shared.prompts[word] for word in cell.concepts]
        erase_sd.generate(
            files, run=folder, images_per_prompt=shared.images_per_prompt, dtype=shared.dtype
        )
        erase_sd.score(folder, detector=shared.models.detector)
    if not _is_evaluated(cell):
        erase_sd.evaluate(folder)


def is_done(cell: Cell, shared: Shared) -> bool:
    """Whether the run folder holds all that the cell is to leave, made with these very settings."""
    run = Run(cell.folder)
    if run.status("unlearn") != "done" or not _is_evaluated(cell):
        return False
    stages = run.manifest["stages"]
    wanted = json.loads(json.dumps(dataclasses.asdict(cell.settings()))) | shared.origin
    if not wanted.items() <= stages["unlearn"]["settings"].items():
        return False
    if not shared.images:
        return True
    if run.status("generate") != "done" or run.status("score") != "done":
        return False
    drawn, scored = (stages[name]["settings"] for name in ("generate", "score"))
    retain = next(iter(shared.prompts.values())).with_name("retain.txt")
    files = [*(shared.prompts[word] for word in cell.concepts), retain]
    return bool(
        drawn["prompts"] == {file.name: hash_file(file) for file in files}
        and drawn["images_per_prompt"] == shared.images_per_prompt
        and f"torch.{drawn['dtype']}" == str(runtime.dtype(shared.dtype))
        and scored["detector_sha256"] == shared.models.detector_hash()
    )


def _is_evaluated(cell: Cell) -> bool:
    """Whether its `evaluation.json` is of its own held-out pairs, and not of what somebody else wanted
    to see."""
    path = cell.folder / "evaluation.json"
    about = read_json(path)["about"] if path.is_file() else {}
    return bool(
        about
        and about["data"]["kind"] == labelled.HELD_OUT
        and about["templates"] == list(evaluation.TEMPLATES)
    )
