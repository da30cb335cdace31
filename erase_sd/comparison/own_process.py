"""A cell in a process of its own: peak memory is the cell's, and a killed cell ends no other."""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import os

from .. import runtime, termination
from ..child import KilledError, in_child
from .cell import GridSetup, attempt
from .grid import Cell

# torchrun's variables; with them a cell's process would try to join the others.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Imported once, in the process that all cells are forked from, instead of 15 seconds in each.
PRELOADED = [
    *(f"erase_sd.{stage}.stage" for stage in ("unlearning", "generation", "scoring", "evaluation")),
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.auto.processing_auto",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.clip.modeling_clip",
    "scipy.stats",
    "sklearn.metrics",
]


def in_own_process(cell: Cell, setup: GridSetup) -> str:
    """`attempt` in a process of its own, on this process's device."""
    forks = os.name != "nt"
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks and runtime.device().type == "cpu":  # the driver of a GPU does not survive a fork
        context.set_forkserver_preload(PRELOADED)
    level = runtime.log.level if runtime.log.handlers else None
    prepare = functools.partial(_settle, _environment(), level)
    try:
        return in_child(context, prepare, None, attempt, cell, setup)
    except KilledError as error:
        return error.rule


def _environment() -> dict[str, str]:
    """This process's environment for a cell that sees one device and no other processes."""
    import torch

    environment = {n: value for n, value in os.environ.items() if n not in LAUNCHER_VARIABLES}
    if count := torch.cuda.device_count():
        index = runtime.device().index or 0
        devices = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = devices.split(",")[index % count]
    return environment


def _settle(environment: dict[str, str], log_level: int | None) -> None:
    """Prepares a cell's process; it logs to stderr if the parent does."""
    gc.freeze()  # collections leave out what was imported, half a second each, and do not copy it
    os.environ.clear()
    os.environ.update(environment)
    runtime.keep_freed_memory()
    termination.handle_signals()  # the last checkpoint is of the last step
    if log_level is not None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("erase-sd: %(message)s"))
        runtime.log.addHandler(handler)
        runtime.log.setLevel(log_level)
