"""Images of the original and of the erased model, from the same noise."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import runtime
from ..data import kinds
from ..errors import ModelError, RunError, SettingError
from ..files import digest, hash_file, key_of, read_rows, write_bytes, write_rows
from ..models import erased as artifact
from ..models.pipeline import check_lengths, draw, encoders_of, image_size, open_pipeline, swap
from ..models.presets import Models
from ..run import Run, concepts_of
from . import cache as image_cache
from .plan import Shot, plan, reduced

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What shapes the images. Every field is an option of `erase-sd generate`."""

    images_per_prompt: int = 1
    """Images of each prompt, each from a seed of its own."""
    steps: int | None = None
    """Denoising steps; None: the preset's, 50, in the miniature world 25."""
    guidance: float | None = None
    """Classifier-free guidance scale; None: the preset's, 7.5, in the miniature world 3.5."""
    seed: int = 1000
    """Of the first image; image k of prompt p uses seed + p * images_per_prompt + k."""
    batch: int | None = None
    """Images a batch; None: 25 small ones, 8 of 512 px, 2 of 1024 px. Part of the result: a batch's
    size changes pixels slightly."""
    dtype: str = "auto"
    """Precision of the pipeline: auto (bf16 on CUDA, else fp32), fp32, bf16 or fp16."""

    def __post_init__(self) -> None:
        runtime.dtype(self.dtype)
        for name in ("images_per_prompt", "steps", "batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SettingError(
                    f"--{name.replace('_', '-')}: needs at least 1, got {getattr(self, name)}"
                )
        if self.guidance is not None and not 1 <= self.guidance <= 100:
            raise SettingError(f"--guidance: needs 1 to 100, got {self.guidance}")
        if not 0 <= self.seed < 2**63 - 10**9:
            raise SettingError(f"--seed: needs 0 or more, got {self.seed}")


@dataclass(frozen=True)
class _Arm:
    """One side of the comparison: its name, what identifies its weights, its text encoders, and the
    text that it draws for each shot, where it draws any."""

    name: str
    weights: str
    encoders: dict[str, Any]
    texts: dict[Shot, str]


def generate(
    prompts: list[Path],
    settings: Settings,
    models: Models,
    run: Run,
    progress: Progress | None = None,
    reference: bool = False,
) -> list[dict[str, Any]]:
    """Draws every prompt with both text encoders; returns the rows of `images.jsonl`.

    With `reference`, a third arm: the original's image, from the same seed, of each prompt that
    mentions a concept, with the mention's phrase taken out; such a row's `text` is what was drawn.
    The original's images are shared between runs through the cache. Where memory runs out, all arms
    begin again with smaller batches. Raises DataError for a prompt file that cannot be used,
    SettingError for a kind file of no concept of the run, and RunError before unlearning is done.
    """
    concepts = concepts_of(run.require("unlearn", "unlearn first"))
    kinds.check(prompts, [concept.name for concept in concepts])
    runtime.quiet_libraries()
    described = artifact.check(run.folder / "erased")
    fingerprint = models.fingerprint()
    if described["base"]["fingerprint"] != fingerprint:
        raise RunError(
            f"{run.folder}: unlearned from {described['base']['model']}, not {models.model}"
        )
    shots = plan(prompts, settings.images_per_prompt, settings.seed)
    pipe = open_pipeline(models.folder, settings.dtype)
    check_lengths(pipe, {shot.prompt: shot.prompts for shot in shots})
    erased = described["weights_sha256"]
    arms = _arms(pipe, run, shots, fingerprint, erased)
    if reference:
        texts = reduced(shots, concepts)
        arms.insert(1, replace(arms[0], name="reference", texts=texts))
    shape = _shape(pipe, settings, models, fingerprint)
    stage = shape | {
        "erased": erased,
        "prompts": {path.name: hash_file(path) for path in prompts},
        "reference": reference,
    }
    with run.stage("generate", stage) as entry:
        while True:
            try:
                rows = _draw_all(pipe, arms, shots, shape, run, progress)
                break
            except torch.OutOfMemoryError:
                if shape["batch"] == 1:
                    raise ModelError(f"{models.model}: out of memory with one image") from None
                shape["batch"] //= 2
            runtime.free_memory()
            runtime.say(f"out of memory; begins again with {shape['batch']} images a batch")
        entry["batch"] = shape["batch"]
        _forget_strays(run, rows)
    return rows


def _arms(
    pipe: DiffusionPipeline, run: Run, shots: list[Shot], fingerprint: str, erased: dict[str, str]
) -> list[_Arm]:
    """The original and the erased model, each with every shot's own prompt."""
    own, loaded = encoders_of(pipe), {name: artifact.load(run.folder, name) for name in erased}
    texts = {shot: shot.prompt for shot in shots}
    return [
        _Arm("original", fingerprint, own, texts),
        _Arm("erased", key_of(erased), loaded, texts),
    ]


def _shape(
    pipe: DiffusionPipeline, settings: Settings, models: Models, fingerprint: str
) -> dict[str, Any]:
    """All that shapes an image but its prompt, seed and text encoder."""
    size = image_size(pipe)
    return asdict(settings) | {
        "size": size,
        "steps": settings.steps or models.steps,
        "guidance": settings.guidance or models.guidance,
        "batch": settings.batch or max(1, min(25, 2**21 // size**2)),
        "scheduler": type(pipe.scheduler).__name__,
        "model": fingerprint,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": pipe.device.type,
    }


def _draw_all(
    pipe: DiffusionPipeline,
    arms: list[_Arm],
    shots: list[Shot],
    shape: dict[str, Any],
    run: Run,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """All arms' images in batches of one size; `images.jsonl` grows with every batch."""
    kept = _kept(run)
    rows: list[dict[str, Any]] = []
    # A batch never mixes prompt files: retain.txt has the same batches in every run.
    files = [list(group) for _, group in itertools.groupby(shots, key=lambda shot: shot.prompts)]
    size = shape["batch"]
    batches = [file[i : i + size] for file in files for i in range(0, len(file), size)]
    for arm in arms:
        swap(pipe, arm.encoders)
        for number, planned in enumerate(batches):
            batch = [shot for shot in planned if shot in arm.texts]
            if not batch:
                continue
            said = [replace(shot, prompt=arm.texts[shot]) for shot in batch]
            key = key_of([arm.name, arm.weights, shape, [asdict(shot) for shot in said]])
            made = _batch(pipe, said, shape, key, arm.name, run, kept)
            for shot, sha256 in zip(batch, made, strict=True):
                rows.append(
                    {"file": f"images/{arm.name}/{shot.file}", "arm": arm.name,
                     "prompts": shot.prompts, "prompt": shot.prompt, "seed": shot.seed,
                     "steps": shape["steps"], "guidance": shape["guidance"], "size": shape["size"],
                     "scheduler": shape["scheduler"], "weights": arm.weights, "batch": number,
                     "batch_key": key, "sha256": sha256}
                    | ({"text": arm.texts[shot]} if arm.name == "reference" else {})
                )  # fmt: skip
            write_rows(run.folder / "images.jsonl", rows)
            if progress:
                progress(len(rows), sum(len(arm.texts) for arm in arms), arm.name)
    return rows


def _kept(run: Run) -> dict[str, tuple[str, str]]:
    """Images of an earlier, interrupted pass: file -> (batch key, sha256)."""
    rows = read_rows(run.folder / "images.jsonl")
    return {row["file"]: (row["batch_key"], row["sha256"]) for row in rows}


def _batch(
    pipe: DiffusionPipeline,
    batch: list[Shot],
    shape: dict[str, Any],
    key: str,
    arm: str,
    run: Run,
    kept: dict[str, tuple[str, str]],
) -> list[str]:
    """Makes one batch, or finds it whole in the run or in the cache; returns the files' hashes."""
    files = [run.folder / "images" / arm / shot.file for shot in batch]
    before = [kept.get(f"images/{arm}/{shot.file}", ("", "")) for shot in batch]
    if all(
        b[0] == key and f.is_file() and hash_file(f) == b[1]
        for f, b in zip(files, before, strict=True)
    ):
        return [b[1] for b in before]
    originals = arm != "erased"
    encoded = image_cache.find(key, len(batch)) if originals else []
    if not encoded:
        encoded = [
            _png(image)
            for image in draw(
                pipe, [s.prompt for s in batch], [s.seed for s in batch], shape["steps"],
                shape["guidance"],
            )
        ]  # fmt: skip
        if originals:
            image_cache.keep(key, encoded)
    for file, data in zip(files, encoded, strict=True):
        write_bytes(file, data)
    return [digest(data) for data in encoded]


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _forget_strays(run: Run, rows: list[dict[str, Any]]) -> None:
    """Removes images of an earlier pass that this one has not made."""
    named = {row["file"] for row in rows}
    for file in (run.folder / "images").rglob("*.png"):
        if str(file.relative_to(run.folder)) not in named:
            file.unlink()
