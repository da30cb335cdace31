"""The job: unlearn, generate, score, and all three in a row."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import api, runtime
from ..sharing import writes
from . import checks
from . import options as opt
from . import training_options as train
from .stage_process import UNUSED, UNUSED_BY_IMAGES, in_stage_process
from .terminal import Bar, rates_table

if TYPE_CHECKING:
    from ..run.measurements import ScoresRecord


def unlearn(
    concepts: opt.Concepts,
    synonyms: opt.Synonyms = None,
    keep_senses: opt.KeepSenses = None,
    run: opt.RunName = None,
    method: train.MethodChoice = None,
    hyperparameters: train.SetOptions = None,
    towers: train.TrainedTowers = None,
    learning_rate: train.LearningRate = None,
    steps: train.Steps = None,
    min_steps: train.MinSteps = None,
    forget_batch: train.ForgetBatch = None,
    retain_batch: train.RetainBatch = None,
    validate_every: train.ValidateEvery = None,
    forget_threshold: train.ForgetThreshold = None,
    retain_floor: train.RetainFloor = None,
    max_residual: train.MaxResidual = None,
    seed: train.Seed = None,
    mine_mentions: train.MineMentions = None,
    dtype: train.TrainingDtype = None,
    preset: opt.PresetName = "mini",
    model: opt.Model = None,
    revision: opt.Revision = None,
    clip: opt.ClipFolders = None,
    data: opt.Data = None,
    quiet: opt.Quiet = False,
) -> None:
    """Erase concepts from the text encoder, or from the U-Net with a method that changes it."""
    settings = opt.chosen(
        method=method, towers=towers, learning_rate=learning_rate, steps=steps, min_steps=min_steps,
        forget_batch=forget_batch, retain_batch=retain_batch, validate_every=validate_every,
        forget_threshold=forget_threshold, retain_floor=retain_floor, max_residual=max_residual,
        seed=seed, dtype=dtype, mine_mentions=mine_mentions,
    )  # fmt: skip
    _unlearn(
        quiet, concepts=concepts, synonyms=synonyms or (), keep_senses=keep_senses or (), run=run,
        hyperparameters=opt.parse_hyperparameters(hyperparameters), preset=preset, model=model,
        revision=revision, clip=clip, data=data, **settings,
    )  # fmt: skip


def generate(
    prompts: opt.Prompts = None,
    run: opt.RunOfPrompts = None,
    kinds: opt.Kinds = False,
    reference: opt.Reference = False,
    images_per_prompt: opt.ImagesPerPrompt = None,
    steps: opt.DenoisingSteps = None,
    sampler: opt.SamplerChoice = None,
    guidance: opt.Guidance = None,
    seed: opt.ImageSeed = None,
    batch: opt.BatchSize = None,
    dtype: opt.ImageDtype = None,
    compiled: opt.Compile = False,
    preset: opt.RunPreset = None,
    model: opt.Model = None,
    revision: opt.Revision = None,
    yes: opt.Yes = False,
    quiet: opt.Quiet = False,
) -> None:
    """Generate images of prompts with the original and the erased model, from the same seeds."""
    settings = opt.chosen(
        images_per_prompt=images_per_prompt, steps=steps, sampler=sampler, guidance=guidance,
        seed=seed, batch=batch, dtype=dtype, compiled=compiled,
    )  # fmt: skip
    _generate(
        quiet, prompts=prompts or [], run=run, kinds=kinds, reference=reference, preset=preset,
        model=model, revision=revision, approve=opt.approval(yes), **settings,
    )  # fmt: skip


def score(
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="RUN", help=opt.RUN_HELP, show_default="all runs with images"
        ),
    ] = None,
    by_class: opt.ByClass = False,
    preset: opt.RunPreset = None,
    detector: opt.DetectorFile = None,
    detector_text: opt.DetectorText = None,
    detector_class: opt.DetectorClasses = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Detect objects in the images of a run, by default of all runs, and print the detection rates.

    A run that cannot be scored is named and left out of the table of all runs; the exit status is then 1.
    """
    scores = _score(
        quiet, run=run, preset=preset, detector=detector, detector_text=detector_text,
        detector_class=detector_class or (),
    )  # fmt: skip
    rates = scores.by_class if by_class else scores.rates
    if as_json:
        record = dataclasses.asdict(dataclasses.replace(scores, rates=rates))
        keys = ("threshold", "detectors", "rates", "unscored")
        print(json.dumps({key: record[key] for key in keys}))
    else:
        rates_table(scores, rates)
    if scores.unscored:
        raise typer.Exit(1)


def run(
    concepts: opt.Concepts,
    synonyms: opt.Synonyms = None,
    keep_senses: opt.KeepSenses = None,
    run: opt.RunName = None,
    method: train.MethodChoice = None,
    hyperparameters: train.SetOptions = None,
    mine_mentions: train.MineMentions = None,
    prompts: opt.Prompts = None,
    kinds: opt.Kinds = False,
    reference: opt.Reference = False,
    images_per_prompt: opt.ImagesPerPrompt = None,
    dtype: train.TrainingDtype = None,
    preset: opt.PresetName = "mini",
    model: opt.Model = None,
    revision: opt.Revision = None,
    clip: opt.ClipFolders = None,
    data: opt.Data = None,
    detector: opt.DetectorFile = None,
    detector_text: opt.DetectorText = None,
    detector_class: opt.DetectorClasses = None,
    yes: opt.Yes = False,
    quiet: opt.Quiet = False,
) -> None:
    """Unlearn, generate, score and report, in this order.

    Without --prompts, the concept's own file is used: prompts/<concept>.txt, or the one that comes
    with erase-sd.
    """
    from ..scoring.ahead import detecting_ahead

    began, files = time.monotonic(), checks.prompt_files(prompts, concepts)
    sources: dict[str, Any] = {
        "preset": preset, "model": model, "revision": revision, "clip": clip, "data": data,
    }  # fmt: skip
    detection: dict[str, Any] = {"detector": detector, "detector_text": detector_text}
    precision, shape = opt.chosen(dtype=dtype), opt.chosen(images_per_prompt=images_per_prompt)
    words = concepts, synonyms or (), keep_senses or ()
    checked = files, kinds, words, shape | precision, sources | detection, detector_class or ()
    erasing: dict[str, Any] = dict(zip(("concepts", "synonyms", "keep_senses"), words, strict=True))
    erasing |= {"run": run, "hyperparameters": opt.parse_hyperparameters(hyperparameters)}
    erasing |= opt.chosen(method=method, mine_mentions=mine_mentions) | precision | sources
    unused, unused_by_images = ((), ()) if model else (UNUSED, UNUSED_BY_IMAGES)
    folder, device = in_stage_process(unused, None, _unlearn_checked, quiet, yes, checked, erasing)
    detection["detector_class"] = detector_class or ()
    with detecting_ahead(folder, device, **detection) as ahead:
        in_stage_process(
            unused_by_images, ahead.detect_new, _generate, quiet, prompts=files, run=folder, kinds=kinds,
            reference=reference, **shape, **precision,
        )  # fmt: skip
        ahead.write()
        scores = _score(quiet, run=folder, **detection)
    rates_table(scores, scores.rates)
    if writes():
        _finish(folder, time.monotonic() - began, device)


def _unlearn_checked(
    quiet: bool, yes: bool, checked: tuple[Any, ...], erasing: dict[str, Any]
) -> tuple[Path, str]:
    """Unlearns once everything that later stages need is known to be there; also returns the type of the
    device."""
    opt.approval(yes)(checks.images_of_run(*checked), None)
    return _unlearn(quiet, **erasing), runtime.device().type


def _unlearn(quiet: bool, **arguments: Any) -> Path:
    with Bar("unlearn", quiet) as progress:
        folder = api.unlearn(**arguments, progress=progress)
    erased = folder / "erased"
    what = "U-Net" if (erased / "unet").is_dir() else "text encoder"
    print(f"{folder}: erased {what} in {erased}")
    return folder


def _generate(quiet: bool, **arguments: Any) -> None:
    with Bar("generate", quiet) as progress:
        folder = api.generate(**arguments, progress=progress)
    print(f"{folder}: images in {folder / 'images'}")


def _score(quiet: bool, **arguments: Any) -> ScoresRecord:
    with Bar("score", quiet) as progress:
        return api.score(**arguments, progress=progress)


def _finish(folder: Path, seconds: float, device: str) -> None:
    """Records the total cost and writes the report."""
    from ..report import write
    from ..run import Run
    from ..run.records import Total

    own = Run(folder)
    stages = own.stages
    peak, where = round(runtime.peak_memory() / 1e6), "in the largest process"
    if device == "cuda":  # that of the child processes, which have ended
        own_peaks = [s.peak_memory_mb or 0 for s in (stages.unlearn, stages.generate) if s]
        peak, where = max(own_peaks), "on the GPU"
    own.update(total=Total(seconds=round(seconds, 1), peak_memory_mb=peak))
    print(f"{folder}: report in {write(own)}")
    print(f"{folder}: {seconds:.0f} s in total, peak memory {peak / 1e3:.2f} GB {where}")
