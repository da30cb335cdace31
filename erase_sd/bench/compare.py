"""Ours beside the rivals, on the same captions and seeds, each as the median of several runs."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import runtime
from ..data.coco import named_classes
from ..data.images import as_files
from ..data.prompts import find_prompts, read_prompt_file
from ..detection.detector import detect
from ..models.pipeline import open_pipeline
from ..models.presets import Models, resolve
from ..models.sampling import generate_batch
from ..scoring.rates import THRESHOLD
from ..unlearning.pairs import dataset_of
from ..unlearning.settings import parse_concepts
from .naive_cliperase import BATCH, EPOCHS, naive_seconds_per_step
from .stock_loop import stock_images

if TYPE_CHECKING:
    from PIL.Image import Image

CONCEPT = "apple"
STOCK_STEPS = 25
"""Denoising steps of the stock loop."""
FIRST_SEED = 9_000_000
NAIVE_STEPS = 4
"""Steps of the naive loop that are timed; the paper's recipe is computed from them."""


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """One measure: seconds of ours and of a rival."""

    measure: str
    runs: int
    """How many runs the medians are of."""
    ours: float
    """Median, seconds."""
    rival: float | None
    """Median, seconds; None if there is nothing to compare with."""
    ours_detected: float | None = None
    """Share of the named objects that are detected in the images (0-1)."""
    rival_detected: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as long the rival takes."""
        return None if self.rival is None else self.rival / self.ours


def machine() -> dict[str, str | int]:
    """The processor, its threads and the versions that the figures rest on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    device = runtime.device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"machine": name, "threads": torch.get_num_threads(), **runtime.versions()}


def compare_generation(repeats: int, count: int) -> SideBySide:
    """Seconds per image, with the share of named objects that are detected."""
    models = resolve()
    captions = read_prompt_file(find_prompts(CONCEPT)).texts
    prompts = [captions[number % len(captions)] for number in range(count)]
    seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
    pipe = open_pipeline(models.folder, sampler=models.sampler)

    def ours() -> tuple[list[Image], float]:
        began = time.perf_counter()
        images = generate_batch(pipe, prompts, seeds, models.steps, models.guidance)
        return images, time.perf_counter() - began

    def stock() -> tuple[list[Image], float]:
        return stock_images(models.folder, prompts, seeds, STOCK_STEPS, models.guidance)

    ours()  # warms up
    results = [[run() for _ in range(repeats)] for run in (ours, stock)]
    seconds = [statistics.median(s for _, s in runs) / len(prompts) for runs in results]
    detected = [_detected(models, prompts, runs[0][0]) for runs in results]
    return SideBySide(
        measure="an image", runs=repeats, ours=seconds[0], rival=seconds[1],
        ours_detected=detected[0], rival_detected=detected[1],
    )  # fmt: skip


def _detected(models: Models, prompts: Sequence[str], images: Sequence[Image]) -> float:
    """Share of the objects that the prompts name which are detected in the images."""
    with as_files(images) as files:
        answer = detect(models.detector_file(), files)
    hits = [
        any(d.name == named and d.probability >= THRESHOLD for d in detections)
        for prompt, detections in zip(prompts, answer.detections, strict=True)
        for named in named_classes(prompt, answer.names)
    ]
    return sum(hits) / len(hits)


def compare_unlearning(repeats: int) -> list[SideBySide]:
    """Seconds of an erasure, as a process from start to end, beside the paper's 20 epochs."""
    from ..data.split import split_by_concept

    models, concepts = resolve(), parse_concepts([CONCEPT])
    data = dataset_of(models, concepts)
    sets = split_by_concept(data.items, concepts).present(data)
    forget, retain = (
        [
            (path, pair.caption)
            for pair in sets.pairs(name, "train")
            if pair.image and isinstance(path := data.path_of(pair.image), Path)
        ]
        for name in ("forget", "retain")
    )
    steps = EPOCHS * math.ceil(len(retain) / BATCH)
    clip = models.clip_folder(0)
    paper = steps * _median(
        repeats, lambda: naive_seconds_per_step(clip, forget, retain, NAIVE_STEPS)
    )
    command = ["unlearn", "--concept", CONCEPT]
    default = _median(repeats, lambda: _seconds_of(*command))
    closed = _median(repeats, lambda: _seconds_of(*command, "--method", "projection"))
    return [
        SideBySide(measure="an erasure", runs=repeats, ours=default, rival=paper),
        SideBySide(measure="an erasure in closed form", runs=repeats, ours=closed, rival=paper),
    ]


def time_job(repeats: int) -> list[SideBySide]:
    """Seconds of `erase-sd run`, once with an empty cache, then with what that run leaves in it."""
    command = ("run", "--concept", CONCEPT)
    with tempfile.TemporaryDirectory() as cache:
        cold = _seconds_of(*command, cache=cache)
        warm = _median(repeats, lambda: _seconds_of(*command, cache=cache))
    return [
        SideBySide(measure="erase-sd run, empty cache", runs=1, ours=cold, rival=None),
        SideBySide(measure="erase-sd run, warm cache", runs=repeats, ours=warm, rival=None),
    ]


def _median(repeats: int, seconds: Callable[[], float]) -> float:
    return statistics.median(seconds() for _ in range(repeats))


def _seconds_of(*command: str, cache: str | None = None) -> float:
    """Seconds of a command in a folder of its own, process start included."""
    environment = os.environ | ({"ERASE_SD_CACHE": cache} if cache else {})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "erase_sd", *command, "--quiet"],
            cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - began
