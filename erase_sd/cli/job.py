"""unlearn, generate, score, and all three in order."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import erase_sd

from .app import app
from .options import (
    AsJson,
    Batch,
    ByClass,
    ClipFolder,
    Concept,
    Data,
    Denoising,
    DetectorClass,
    DetectorFile,
    Dtype,
    Guidance,
    ImageSeed,
    KeepSense,
    Kinds,
    Method,
    Model,
    PerPrompt,
    Preset,
    Prompts,
    Quiet,
    Rate,
    Reference,
    Revision,
    RunName,
    RunsPreset,
    Seed,
    Steps,
    Synonym,
    Towers,
    Weight,
    given_of,
    weights_of,
)
from .terminal import Bar, rates_table

if TYPE_CHECKING:
    from ..scoring.rates import Row

PANEL = "The job"


@app.command(rich_help_panel=PANEL)
def unlearn(
    concept: Concept,
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    run: RunName = None,
    method: Method = None,
    weight: Weight = None,
    towers: Towers = None,
    rate: Rate = None,
    steps: Steps = None,
    seed: Seed = None,
    dtype: Dtype = None,
    preset: Preset = "mini",
    model: Model = None,
    revision: Revision = None,
    clip: ClipFolder = None,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Erase a concept from the text encoder."""
    given = {
        "method": method, "towers": towers, "rate": rate, "steps": steps, "seed": seed,
        "dtype": dtype,
    }  # fmt: skip
    places = {"preset": preset, "model": model, "revision": revision, "clip": clip, "data": data}
    _unlearn(concept, synonym, keep_sense, run, weight, given, places, quiet)


@app.command(rich_help_panel=PANEL)
def generate(
    prompts: Prompts = None,
    run: RunName = None,
    kinds: Kinds = False,
    reference: Reference = False,
    images_per_prompt: PerPrompt = None,
    steps: Denoising = None,
    guidance: Guidance = None,
    seed: ImageSeed = None,
    batch: Batch = None,
    dtype: Dtype = None,
    preset: RunsPreset = None,
    model: Model = None,
    revision: Revision = None,
    quiet: Quiet = False,
) -> None:
    """Draw prompts with the original and the erased encoder, from the same seeds.

    A `retain.txt` beside the prompts is drawn too. The run is found by the prompt file's name.
    """
    given = {
        "images_per_prompt": images_per_prompt, "steps": steps, "guidance": guidance,
        "seed": seed, "batch": batch, "dtype": dtype, "kinds": kinds, "reference": reference,
    }  # fmt: skip
    places = {"preset": preset, "model": model, "revision": revision}
    _generate(prompts or [], run, given, places, quiet)


@app.command(rich_help_panel=PANEL)
def score(
    run: RunName = None,
    by_class: ByClass = False,
    preset: RunsPreset = None,
    detector: DetectorFile = None,
    detector_class: DetectorClass = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Detect objects in the images and print the detection rates; of all runs, or of one."""
    with Bar("score", quiet) as advance:
        tables = erase_sd.score(
            run, preset=preset, detector=detector, detector_class=detector_class or (),
            progress=advance,
        )  # fmt: skip
    rows = tables.by_class if by_class else tables.rows
    if as_json:
        detectors = [dataclasses.asdict(used) for used in tables.detectors]
        print(json.dumps({"detectors": detectors, "rows": [_plain(row) for row in rows]}))
    else:
        rates_table(rows, tables.note)


@app.command(rich_help_panel=PANEL)
def run(
    concept: Concept,
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    name: RunName = None,
    method: Method = None,
    weight: Weight = None,
    prompts: Prompts = None,
    kinds: Kinds = False,
    reference: Reference = False,
    images_per_prompt: PerPrompt = None,
    dtype: Dtype = None,
    preset: Preset = "mini",
    model: Model = None,
    revision: Revision = None,
    clip: ClipFolder = None,
    data: Data = None,
    detector: DetectorFile = None,
    detector_class: DetectorClass = None,
    quiet: Quiet = False,
) -> None:
    """Unlearn, generate, score and report, in this order."""
    from .. import runtime
    from ..data.kinds import beside
    from ..data.prompts import read_prompts
    from ..models.presets import resolve
    from ..report import write
    from ..run import Run

    began = time.monotonic()
    files = prompts or [Path("prompts") / f"{word}.txt" for word in concept]
    for file in [*files, *(beside(files) if kinds else [])]:
        read_prompts(file)  # what is wrong with it is better known before the unlearning
    places: dict[str, Any] = {
        "preset": preset, "model": model, "revision": revision, "clip": clip, "data": data,
    }  # fmt: skip
    resolve(**places, detector=detector).detector_file()  # so is what is missing at the end
    precise = {"dtype": dtype}
    folder = _unlearn(
        concept, synonym, keep_sense, name, weight, {"method": method} | precise, places, quiet
    )
    drawn = {"images_per_prompt": images_per_prompt, "kinds": kinds, "reference": reference}
    _generate(files, str(folder), drawn | precise, {}, quiet)
    with Bar("score", quiet) as advance:
        tables = erase_sd.score(
            folder, detector=detector, detector_class=detector_class or (), progress=advance
        )
    rates_table(tables.rows, tables.note)
    took, peak = time.monotonic() - began, runtime.peak_memory()
    found = Run(folder)
    found.update(total={"seconds": round(took, 1), "peak_memory_mb": round(peak / 1e6)})
    print(f"{folder}: page in {write(found)}")
    print(f"{folder}: {took:.0f} s in all, at most {peak / 1e9:.2f} GB of memory")


def _unlearn(
    concept: list[str],
    synonym: list[str] | None,
    keep_sense: list[str] | None,
    run: str | None,
    weight: list[str] | None,
    given: dict[str, Any],
    places: dict[str, Any],
    quiet: bool,
) -> Path:
    with Bar("unlearn", quiet) as advance:
        folder = erase_sd.unlearn(
            concept, synonyms=synonym or [], keep_senses=keep_sense or [], run=run,
            weights=weights_of(weight or []), **given_of(given), **places,
            progress=lambda done, of, terms: advance(done, of, _short(terms)),
        )  # fmt: skip
    print(f"{folder}: text encoder in {folder / 'erased'}")
    return folder


def _generate(
    prompts: list[Path],
    run: str | None,
    given: dict[str, Any],
    places: dict[str, Any],
    quiet: bool,
) -> None:
    with Bar("generate", quiet) as advance:
        folder = erase_sd.generate(prompts, run=run, **given_of(given), **places, progress=advance)
    print(f"{folder}: images in {folder / 'images'}")


def _short(terms: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in terms.items())


def _plain(row: Row) -> dict[str, Any]:
    from ..scoring.rates import as_json

    return as_json(row)
