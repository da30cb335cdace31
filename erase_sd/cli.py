"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import erase_sd

from .errors import EraseError, RunError, SettingError
from .terminal import Bar, evaluation_table, facts_table, grid_tables, methods_list, rates_table

if TYPE_CHECKING:
    from .rates import Row

app = typer.Typer(
    help="Take a concept out of Stable Diffusion, and show that it is gone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Concept = Annotated[list[str], typer.Option(help="Word to erase; may be given more than once.")]
Synonym = Annotated[
    list[str] | None, typer.Option(help="Another word for it; may be given more than once.")
]
KeepSense = Annotated[
    list[str] | None, typer.Option(help='Phrase that stays, e.g. "apple laptop".')
]
RunName = Annotated[str | None, typer.Option("--run", help="Name under runs/, or a folder.")]
Preset = Annotated[str, typer.Option(help="mini, sd14, sd15, sd21 or sdxl; names the four below.")]
RunsPreset = Annotated[str | None, typer.Option("--preset", help="Default: the run's own.")]
Model = Annotated[
    str | None, typer.Option(help="diffusers Stable Diffusion: a folder or a hub id.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub's model.")]
ClipFolder = Annotated[
    list[str] | None,
    typer.Option("--clip", help="transformers CLIP: a folder or a hub id; two for SDXL."),
]
Data = Annotated[
    Path | None, typer.Option(help="Flickr30K folder, or synth: pairs made by the model.")
]
DetectorFile = Annotated[
    Path | None, typer.Option("--detector", help="YOLOv5: .safetensors or .pt.")
]
Dtype = Annotated[str | None, typer.Option(help="auto, fp32, bf16; for images fp16 too.")]
Method = Annotated[
    str | None, typer.Option(help="`erase-sd methods` lists them; default: cliperase-anchored.")
]
Weight = Annotated[
    list[str] | None, typer.Option(help="A field of the method, e.g. forget_weight=3.")
]
Towers = Annotated[str | None, typer.Option(help="text or both.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.")]
Steps = Annotated[int | None, typer.Option(help="Most unlearning steps.")]
Seed = Annotated[int | None, typer.Option(help="Of the split and the batches.")]
SplitSeed = Annotated[int | None, typer.Option("--seed", help="Of the split, as in unlearn.")]
Prompts = Annotated[
    list[Path] | None,
    typer.Option(help="File of prompts, one a line; may be given more than once."),
]
Kinds = Annotated[
    bool, typer.Option("--kinds", help="Draw <concept>.<kind>.txt beside the prompts too.")
]
Reference = Annotated[
    bool, typer.Option("--reference", help="Draw the original without the concept's words too.")
]
PerPrompt = Annotated[int | None, typer.Option(help="Images of each prompt.")]
Denoising = Annotated[int | None, typer.Option("--steps", help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
ImageSeed = Annotated[int | None, typer.Option("--seed", help="Of the first image.")]
Batch = Annotated[int | None, typer.Option(help="Images a batch.")]
DetectorClass = Annotated[
    list[str] | None,
    typer.Option(help="The detector's word for the concept; concept=word for one of several."),
]
ByClass = Annotated[bool, typer.Option(help="A line for each class, look-alikes among them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def main() -> None:
    """The `erase-sd` program: one line on stderr and exit status 1 for what a user can mend."""
    try:
        app()
    except EraseError as error:
        _fail(" ".join(str(error).split()))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")


def _fail(line: str) -> None:
    print(f"erase-sd: {line}", file=sys.stderr)
    raise SystemExit(1)


Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


@app.command()
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


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them; none: all.")] = None,
) -> None:
    """List the unlearning methods: paper, what they train, and their settings for --weight."""
    from .methods import METHODS
    from .methods.pages import page_of

    if name is not None and name not in METHODS:
        raise SettingError(f"{name}: unknown method; needs one of {', '.join(METHODS)}")
    methods_list([page_of(each) for each in ([name] if name else METHODS)])


@app.command()
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


@app.command()
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


@app.command()
def show(
    run: Annotated[list[str], typer.Option(help="Run to show; may be given more than once.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("pairs.png"),
    columns: Annotated[int, typer.Option(help="Prompts to show.")] = 12,
    scale: Annotated[int, typer.Option(help="Enlarge the images this many times.")] = 1,
) -> None:
    """Put images of the same prompts and seeds below one another in one picture."""
    from .rundir import Run, folder_of
    from .show import show as draw

    print(draw([Run(folder_of(name)) for name in run], out, columns, scale))


@app.command()
def report(
    run: Annotated[
        list[str] | None,
        typer.Option(help="Run to report on; may be given more than once. None: all with images."),
    ] = None,
) -> None:
    """Write each run's page, report.html, and of several runs runs/index.html to compare them."""
    from .report import write, write_all
    from .rundir import RUNS, Run, folder_of
    from .scoring import all_runs

    runs = [Run(folder_of(name)) for name in run] if run else all_runs()
    if not runs:
        raise RunError(f"no run with images in {RUNS}/; unlearn and generate first")
    for path in [write(runs[0])] if run and len(runs) == 1 else write_all(runs):
        print(path)


@app.command()
def play(
    run: Annotated[str, typer.Option(help="Run to play with.")],
    host: Annotated[str, typer.Option(help="Address to answer on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 7860,
    detector: DetectorFile = None,
) -> None:
    """Open a local page: type a prompt and a seed, see both images with what was found in them."""
    from .play import play as serve
    from .presets import of_run
    from .rundir import Run, folder_of

    found = Run(folder_of(run))
    serve(found, of_run(found, detector=detector), host, port, lambda url: print(url, flush=True))


@app.command()
def data(
    concept: Concept,
    folder: Annotated[Path | None, typer.Argument(help="Flickr30K folder.")] = None,
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    seed: SplitSeed = None,
    preset: Preset = "mini",
    clip: ClipFolder = None,
    as_json: AsJson = False,
) -> None:
    """Look at a Flickr30K folder: what it holds of a concept, and how it would be split."""
    from dataclasses import asdict

    from .lengths import ruler_of
    from .pairs.flickr30k import read
    from .pairs.summary import cells, summarize
    from .presets import resolve
    from .settings import Settings, concepts_from

    models = resolve(preset, clip=clip, data=folder)
    concepts = concepts_from(concept, synonym or [], keep_sense or [])
    pairs, ruler = read(models.pairs()), ruler_of(models)
    split_seed = Settings.seed if seed is None else seed
    found = summarize(pairs, concepts, split_seed, ruler.lengths, ruler.limit)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        facts_table(found.folder, cells(found))


@app.command()
def prompts(
    concept: Concept,
    n: Annotated[int, typer.Option("--n", help="Most prompts, one an image.")] = 50,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: prompts/<concept>.txt.")
    ] = None,
    retain: Annotated[bool, typer.Option(help="Write a retain.txt beside it too.")] = False,
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    seed: SplitSeed = None,
    preset: Preset = "mini",
    clip: ClipFolder = None,
    data: Data = None,
) -> None:
    """Write held-out captions of a dataset as prompts, with a line that says where from."""
    from .lengths import ruler_of
    from .pairs.flickr30k import read
    from .presets import resolve
    from .prompts import from_data
    from .rundir import folder_of
    from .settings import Settings, concepts_from

    models = resolve(preset, clip=clip, data=data)
    concepts = concepts_from(concept, synonym or [], keep_sense or [])
    file = out or Path("prompts") / f"{folder_of(None, tuple(concept)).name}.txt"
    split_seed = Settings.seed if seed is None else seed
    written = from_data(
        read(models.pairs()), concepts, file, n, split_seed, ruler_of(models).fits, retain
    )
    for path, count in written.items():
        note = "" if count == n else f"; the held-out images give no more than {count}"
        print(f"{path}: {count} prompts{note}")


@app.command()
def export(
    run: Annotated[str, typer.Option(help="Run to take away.")],
    to: Annotated[str, typer.Option(help="diffusers, comfyui, a1111 or hub-folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="Single-file checkpoint to put it in, for a1111.")
    ] = None,
) -> None:
    """Write the erased encoder in the form that another program reads."""
    from .export import export as write
    from .presets import of_run
    from .rundir import Run, folder_of

    found = Run(folder_of(run))
    folder = write(found, of_run(found), to, out, base)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(file)


@app.command()
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
    from . import runtime
    from .kinds import beside
    from .presets import resolve
    from .prompts import read_prompts
    from .report import write
    from .rundir import Run

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


class Listed(TyperCommand):
    """A command whose --concepts and --methods take all the words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in ("--concepts", "--methods") else ""
            elif option and words[-1] != option:
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


@app.command(cls=Listed)
def compare(
    concepts: Annotated[
        list[str], typer.Option(help="Words to erase, a run each; apple+chair: both in one run.")
    ],
    methods: Annotated[
        list[str], typer.Option(help="Methods, with settings as cliperase:towers=both,rate=1e-3.")
    ],
    seeds: Annotated[int | None, typer.Option(help="Runs of each; default: 3.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: comparison.")] = None,
    prompts_folder: Annotated[
        Path | None, typer.Option(help="Of <concept>.txt and retain.txt; default: prompts.")
    ] = None,
    images_per_prompt: PerPrompt = None,
    skip_images: Annotated[bool, typer.Option("--skip-images", help="CLIP side only.")] = False,
    preset: Preset = "mini",
    model: Model = None,
    revision: Revision = None,
    clip: ClipFolder = None,
    data: Data = None,
    detector: DetectorFile = None,
    quiet: Quiet = False,
) -> None:
    """Run methods side by side on the same concepts, prompts and seeds, and print the tables.

    What is done is not done again. To share the runs out among processes:
    accelerate launch --num_processes 2 -m erase_sd compare ...
    """
    given = {
        "seeds": seeds, "out": out, "prompts_folder": prompts_folder, "revision": revision,
        "images_per_prompt": images_per_prompt, "model": model, "clip": clip, "data": data,
        "detector": detector,
    }  # fmt: skip
    with Bar("compare", quiet or os.environ.get("RANK", "0") != "0") as advance:
        found = erase_sd.compare(
            concepts, methods, images=not skip_images, preset=preset, **_given(given),
            progress=advance,
        )  # fmt: skip
    from .grid_tables import NOTE

    if found.tables:
        grid_tables(found.tables, NOTE)
        print(f"{found.folder}: tables in comparison.md, every row in comparison.csv")
    for cell, reason in found.failed:
        print(f"erase-sd: {cell}: {reason}", file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[str, typer.Option(help="Run whose CLIP towers to measure.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of CIFAR-100, of webdataset shards, or of a folder for each class; default: "
            "the run's own held-out pairs."
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='Class prompt, e.g. "a photo of a {}"; may be given more than once.'),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="Another CLIP, or a BLIP to measure alone: a folder or a hub id."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure CLIP before and after: zero-shot, image and text retrieval, drift of the states."""
    with Bar("evaluate", quiet) as advance:
        found = erase_sd.evaluate(
            run, images=images, templates=template or (), clip=clip, progress=advance
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        evaluation_table(found)


@app.command()
def explain(
    run: Annotated[str, typer.Option(help="Run to look into.")],
) -> None:
    """Draw what an erasure did to CLIP: t-SNE of the held-out pairs, and where its towers look."""
    for path in erase_sd.explain(run):
        print(path)


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
            weights=_weights(weight or []), **_given(given), **places,
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
        folder = erase_sd.generate(prompts, run=run, **_given(given), **places, progress=advance)
    print(f"{folder}: images in {folder / 'images'}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; the others keep the defaults of the settings."""
    return {name: value for name, value in options.items() if value is not None}


def _weights(given: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise SettingError(f"--weight {text}: needs name=value")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = value
    return weights


def _short(terms: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in terms.items())


def _plain(row: Row) -> dict[str, Any]:
    from .rates import as_json

    return as_json(row)
