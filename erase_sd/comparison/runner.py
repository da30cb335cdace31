"""The comparison: runs the cells of a grid that are not done, each in a process of its own."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import runtime
from ..data.prompts import read_prompts
from ..errors import EraseError
from ..generation import stage as generation
from ..models import presets
from ..report.contact_sheet import show
from ..run import Run, folder_of
from ..unlearning import stage as unlearning
from .cell import Shared, attempt, is_done
from .grid import Cell, cells_of
from .results import rows_of, write
from .tables import Table

if TYPE_CHECKING:
    from accelerate import PartialState

Progress = Callable[[int, int, str], None]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # set by torchrun
# Imported once, where each cell's process is forked: a quarter of a minute for each otherwise.
PRELOADED = [
    *(f"erase_sd.{stage}.stage" for stage in ("unlearning", "generation", "scoring", "evaluation")),
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.auto.processing_auto",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.clip.modeling_clip",
    "inflect",
    "scipy.stats",
]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; empty in all processes but the main one."""

    folder: Path
    tables: list[Table]
    failed: list[tuple[Cell, str]]
    """Cells that have no result, and why."""


def compare(
    concepts: Sequence[str],
    methods: Sequence[str],
    *,
    seeds: int,
    out: Path,
    prompts_folder: Path,
    images_per_prompt: int,
    dtype: str,
    images: bool,
    places: dict[str, Any],
    detector: Path | None,
    progress: Progress | None = None,
) -> Comparison:
    """Runs the grid and writes `comparison.csv`, `.md` and the pictures into `out`: those of
    `grid_results.write`, and a contact sheet of each concept.

    The cells are shared out among the processes of `torchrun` (`accelerate launch` starts several on
    GPUs alone); the main one writes when all are through. Raises an EraseError, before anything
    starts, for what no cell could be run with; what ends one cell is a row with its reason.
    """
    from accelerate import PartialState

    cells = cells_of(concepts, methods, seeds, out)
    generation.Settings(images_per_prompt=images_per_prompt, dtype=dtype)
    words = {word for cell in cells for word in cell.concepts}
    prompts = {word: prompts_folder / f"{folder_of(None, (word,)).name}.txt" for word in words}
    models = presets.resolve(**places, detector=detector)
    # Without a word accelerate takes processes that have no accelerator for strangers. Others may wait
    # for hours, where most of what was left to do was one process's share.
    state = PartialState(cpu=runtime.device().type == "cpu", timeout=datetime.timedelta(days=30))
    with state.main_process_first():
        origin = _origin(models)
        if images:
            models.detector_file()
            for file in (*prompts.values(), prompts_folder / "retain.txt"):
                read_prompts(file)
    shared = Shared(
        places=places, models=models, origin=origin, prompts=prompts,
        images_per_prompt=images_per_prompt, dtype=dtype, images=images,
    )  # fmt: skip
    reasons = _run_all(cells, shared, state, progress)
    if not state.is_main_process:
        return Comparison(out, [], [])
    rows = [r for i, cell in enumerate(cells) for r in rows_of(cell, images, reasons.get(i, ""))]
    made = write(out, rows, _command(concepts, methods, seeds, shared))
    if images:
        _show([cell for i, cell in enumerate(cells) if i not in reasons], out)
    return Comparison(out, made, [(cells[i], reasons[i]) for i in sorted(reasons)])


def _run_all(
    cells: Sequence[Cell], shared: Shared, state: PartialState, progress: Progress | None
) -> dict[int, str]:
    """Runs this process's share of the cells; of all processes the numbers that failed, and why."""
    from accelerate.utils import gather_object

    mine = range(len(cells))[state.process_index :: state.num_processes]
    failed = []
    for done, number in enumerate(mine):
        if progress and state.is_main_process:
            progress(done, len(mine), str(cells[number]))
        if reason := _outcome(cells[number], shared, state.local_process_index):
            failed.append((number, reason))
    if progress and state.is_main_process:
        progress(len(mine), len(mine), "waits for the others" if state.num_processes > 1 else "")
    return dict(gather_object(failed))


def _origin(models: presets.Models) -> dict[str, Any]:
    """`unlearning.origin` of what all cells have in common."""
    from ..data.flickr30k import read

    # Those of `--data synth` are made by the model, of each cell's own concepts.
    return unlearning.origin(models, None if models.data == presets.SYNTH else read(models.pairs()))


def _command(concepts: Sequence[str], methods: Sequence[str], seeds: int, shared: Shared) -> str:
    """The words that make the same again; files and folders by their names alone."""
    words = ["erase-sd", "compare", "--concepts", *concepts, "--methods", *methods]
    words += ["--seeds", str(seeds)]
    for option, value in shared.models.given.items():
        for one in value if isinstance(value, list) else [value]:
            if one != "mini":
                words += [f"--{option}", Path(one).name if Path(one).exists() else str(one)]
    if not shared.images:
        return shlex.join([*words, "--skip-images"])
    folder = next(iter(shared.prompts.values())).parent
    words += ["--images-per-prompt", str(shared.images_per_prompt), "--dtype", shared.dtype]
    return shlex.join([*words, "--prompts-folder", folder.name])


def _show(cells: Sequence[Cell], out: Path) -> None:
    """A picture for each concept: the original's first images, and below them each spec's, of the
    first seed."""
    for concept in dict.fromkeys(cell.concept for cell in cells):
        runs = {
            str(cell.spec): Run(cell.folder)
            for cell in cells
            if (cell.concept, cell.seed) == (concept, 0)
        }
        if runs:
            show(list(runs.values()), out / f"{concept}.png", columns=8, names=list(runs))


def _outcome(cell: Cell, shared: Shared, index: int) -> str:
    """Runs a cell unless it is done; the reason where it fails, else nothing."""
    try:
        if is_done(cell, shared):
            return ""
    except EraseError as error:
        return str(error)
    return _in_own_process(cell, shared, index)


def _in_own_process(cell: Cell, shared: Shared, index: int) -> str:
    """`attempt` where the peak of memory is the cell's, and where being killed ends no other."""
    context = multiprocessing.get_context("forkserver")
    if runtime.device().type == "cpu":  # an accelerator's driver does not survive the fork
        context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context, _settle, (_environment(index),)) as pool:
        try:
            return pool.submit(attempt, cell, shared).result()
        except BrokenProcessPool:
            return "its process was killed (out of memory?)"


def _environment(index: int) -> dict[str, str]:
    """This process's environment for a cell that knows one device and no other processes."""
    import torch

    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    if count := torch.cuda.device_count():
        devices = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = devices.split(",")[index % count]
    return environment


def _settle(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    runtime.keep_freed_memory()
