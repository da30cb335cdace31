"""Methods, and measures of them beside one another."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import erase_sd

from ..errors import SettingError
from .app import app
from .options import (
    AsJson,
    ClipFolder,
    Data,
    DetectorFile,
    Model,
    PerPrompt,
    Preset,
    Quiet,
    Revision,
    given_of,
)
from .terminal import Bar, evaluation_table, grid_tables, methods_list

PANEL = "Research"


@app.command(rich_help_panel=PANEL)
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them; none: all.")] = None,
) -> None:
    """List the unlearning methods: paper, what they train, and their settings for --weight."""
    from ..methods import METHODS
    from ..methods.descriptions import page_of

    if name is not None and name not in METHODS:
        raise SettingError(f"{name}: unknown method; needs one of {', '.join(METHODS)}")
    methods_list([page_of(each) for each in ([name] if name else METHODS)])


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


@app.command(cls=Listed, rich_help_panel=PANEL)
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
    dtype: Annotated[
        str | None, typer.Option(help="Of the images: auto, fp32, bf16, fp16; default: auto.")
    ] = None,
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
    torchrun --nproc_per_node 2 -m erase_sd compare ...
    """
    given = {
        "seeds": seeds, "out": out, "prompts_folder": prompts_folder, "revision": revision,
        "images_per_prompt": images_per_prompt, "dtype": dtype, "model": model, "clip": clip, "data": data,
        "detector": detector,
    }  # fmt: skip
    with Bar("compare", quiet or os.environ.get("RANK", "0") != "0") as advance:
        found = erase_sd.compare(
            concepts, methods, images=not skip_images, preset=preset, **given_of(given),
            progress=advance,
        )  # fmt: skip
    from ..comparison.markdown import NOTE

    if found.tables:
        grid_tables(found.tables, NOTE)
        print(f"{found.folder}: tables in comparison.md, every row in comparison.csv")
    for cell, reason in found.failed:
        print(f"erase-sd: {cell}: {reason}", file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def explain(
    run: Annotated[str, typer.Option(help="Run to look into.")],
) -> None:
    """Draw what an erasure did to CLIP: t-SNE of the held-out pairs, and where its towers look."""
    for path in erase_sd.explain(run):
        print(path)
