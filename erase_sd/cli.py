"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import erase_sd

from .errors import EraseError, SettingError

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
Preset = Annotated[str, typer.Option(help="Names the four below.")]
Model = Annotated[Path | None, typer.Option(help="diffusers Stable Diffusion folder.")]
ClipFolder = Annotated[Path | None, typer.Option("--clip", help="transformers CLIP folder.")]
Data = Annotated[Path | None, typer.Option(help="Flickr30K folder.")]
DetectorFile = Annotated[Path | None, typer.Option("--detector", help="Detector, .safetensors.")]
Method = Annotated[str | None, typer.Option(help="cliperase-anchored or cliperase.")]
Weight = Annotated[
    list[str] | None, typer.Option(help="A field of the method, e.g. forget_weight=3.")
]
Towers = Annotated[str | None, typer.Option(help="text or both.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.")]
Steps = Annotated[int | None, typer.Option(help="Most unlearning steps.")]
Seed = Annotated[int | None, typer.Option(help="Of the split and the batches.")]
Prompts = Annotated[
    list[Path] | None,
    typer.Option(help="File of prompts, one a line; may be given more than once."),
]
PerPrompt = Annotated[int | None, typer.Option(help="Images of each prompt.")]
Denoising = Annotated[int | None, typer.Option("--steps", help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
ImageSeed = Annotated[int | None, typer.Option("--seed", help="Of the first image.")]
Batch = Annotated[int | None, typer.Option(help="Images a batch.")]
DetectorClass = Annotated[str | None, typer.Option(help="The detector's word for the concept.")]
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
    preset: Preset = "mini",
    model: Model = None,
    clip: ClipFolder = None,
    data: Data = None,
) -> None:
    """Erase a concept from the text encoder."""
    given = {"method": method, "towers": towers, "rate": rate, "steps": steps, "seed": seed}
    places = {"preset": preset, "model": model, "clip": clip, "data": data}
    _unlearn(concept, synonym, keep_sense, run, weight, given, places)


@app.command()
def generate(
    prompts: Prompts = None,
    run: RunName = None,
    images_per_prompt: PerPrompt = None,
    steps: Denoising = None,
    guidance: Guidance = None,
    seed: ImageSeed = None,
    batch: Batch = None,
    preset: Preset = "mini",
    model: Model = None,
) -> None:
    """Draw prompts with the original and the erased encoder, from the same seeds.

    A `retain.txt` beside the prompts is drawn too. The run is found by the prompt file's name.
    """
    given = {
        "images_per_prompt": images_per_prompt, "steps": steps, "guidance": guidance,
        "seed": seed, "batch": batch,
    }  # fmt: skip
    _generate(prompts or [], run, given, {"preset": preset, "model": model})


@app.command()
def score(
    run: RunName = None,
    by_class: ByClass = False,
    preset: Preset = "mini",
    detector: DetectorFile = None,
    detector_class: DetectorClass = None,
    as_json: AsJson = False,
) -> None:
    """Detect objects in the images and print the detection rates; of all runs, or of one."""
    tables = erase_sd.score(run, preset=preset, detector=detector, detector_class=detector_class)
    rows = tables.by_class if by_class else tables.rows
    if as_json:
        print(json.dumps({"rows": [_plain(row) for row in rows]}))
    else:
        _table(rows)


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
def run(
    concept: Concept,
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    name: RunName = None,
    method: Method = None,
    weight: Weight = None,
    prompts: Prompts = None,
    images_per_prompt: PerPrompt = None,
    preset: Preset = "mini",
    model: Model = None,
    clip: ClipFolder = None,
    data: Data = None,
    detector: DetectorFile = None,
) -> None:
    """Unlearn, generate and score, in this order."""
    from . import runtime
    from .prompts import read_prompts
    from .rundir import Run

    began = time.monotonic()
    files = prompts or [Path("prompts") / f"{word}.txt" for word in concept]
    for file in files:
        read_prompts(file)  # what is wrong with it is better known before the unlearning
    places: dict[str, Any] = {"preset": preset, "model": model}
    folder = _unlearn(
        concept, synonym, keep_sense, name, weight, {"method": method},
        places | {"clip": clip, "data": data},
    )  # fmt: skip
    _generate(files, str(folder), {"images_per_prompt": images_per_prompt}, places)
    _table(erase_sd.score(folder, preset=preset, detector=detector).rows)
    took, peak = time.monotonic() - began, runtime.peak_memory()
    Run(folder).update(total={"seconds": round(took, 1), "peak_memory_mb": round(peak / 1e6)})
    print(f"{folder}: {took:.0f} s in all, at most {peak / 1e9:.2f} GB of memory")


def _unlearn(
    concept: list[str],
    synonym: list[str] | None,
    keep_sense: list[str] | None,
    run: str | None,
    weight: list[str] | None,
    given: dict[str, Any],
    places: dict[str, Any],
) -> Path:
    with _bar("unlearn") as advance:
        folder = erase_sd.unlearn(
            concept, synonyms=synonym or [], keep_senses=keep_sense or [], run=run,
            weights=_weights(weight or []), **_given(given), **places,
            progress=lambda done, of, terms: advance(done, of, _short(terms)),
        )  # fmt: skip
    print(f"{folder}: text encoder in {folder / 'erased'}")
    return folder


def _generate(
    prompts: list[Path], run: str | None, given: dict[str, Any], places: dict[str, Any]
) -> None:
    with _bar("generate") as advance:
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


def _table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .scoring import HEADINGS, NOTE, cells

    table = Table(title="Detection rates", caption=NOTE)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i < 2 else "right")
    for line in cells(rows):
        table.add_row(*line)
    Console().print(table)


class _bar:  # noqa: N801
    """A progress bar with rate and time left, on stderr; silent where that is no terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.title = title
        console = Console(stderr=True)
        self.progress = Progress(
            *Progress.get_default_columns()[:3],
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> _bar:
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=None, note="", rate="")
        self.began = time.monotonic()
        return self

    def __call__(self, done: int, of: int, note: str) -> None:
        rate = f"{done / max(time.monotonic() - self.began, 1e-9):.1f}/s"
        self.progress.update(self.task, completed=done, total=of, note=note, rate=rate)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
