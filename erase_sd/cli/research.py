"""Research: the methods, their comparison, and measures of CLIP itself."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from .. import api
from ..attacks.registry import ATTACKS
from ..methods.registry import MethodName
from . import options as opt
from .command import Command
from .terminal import Bar, comparison_tables, evaluation_table, methods_list


def methods(
    name: Annotated[
        MethodName | None,
        typer.Argument(
            metavar="METHOD",
            show_choices=False,
            help=f"Method to describe, one of {', '.join(get_args(MethodName))}.",
            show_default="all",
        ),
    ] = None,
) -> None:
    """Describe the unlearning methods: paper, trained parameters, hyperparameters for --set."""
    from ..methods.descriptions import describe

    methods_list([describe(each) for each in ([name] if name else get_args(MethodName))])


GridConcepts = Annotated[
    list[str],
    typer.Option(
        metavar="WORD...",
        help="Words to erase, one run each; apple+chair erases both in one run.",
    ),
]
GridMethods = Annotated[
    list[str],
    typer.Option(
        metavar="METHOD...",
        help="Methods, with settings after a colon: ga:steps=200,towers=both.",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        help="Number of training seeds, 0, 1, ..., for each concept and method.", show_default="3"
    ),
]
ResultsFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write all results to.", show_default="comparison"),
]
PromptsFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder with <concept>.txt and retain.txt.",
        show_default="prompts, else those that come with erase-sd",
    ),
]
GridAttacks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ATTACK...",
        help="Attacks to run on every erased model, such as textual-inversion p4d, or all; they use its "
        "held-out captions, whatever the prompts are.",
        show_default="none",
    ),
]
SkipImages = Annotated[
    bool, typer.Option("--skip-images", help="Generate no images; measure CLIP only.")
]


class WordLists(Command):
    """A command whose --concepts, --methods and --attacks take all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats an option before each of several words, so that `--methods ga kl` names two."""
        words: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in ("--concepts", "--methods", "--attacks") else ""
            elif option and words[-1] != option:
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


def compare(
    concepts: GridConcepts,
    methods: GridMethods,
    seeds: Seeds = None,
    out: ResultsFolder = None,
    prompts_folder: PromptsFolder = None,
    images_per_prompt: opt.ImagesPerPrompt = None,
    dtype: opt.ImageDtype = None,
    attacks: GridAttacks = None,
    skip_images: SkipImages = False,
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
    """Run methods on the same concepts, prompts and seeds, and print the tables.

    Finished runs are reused. Several commands with the same --out, on one machine or on several with a
    common file system, share the runs; erase-sd launch -n N compare ... starts N on one machine.
    """
    settings = opt.chosen(
        seeds=seeds, out=out, prompts_folder=prompts_folder, images_per_prompt=images_per_prompt,
        dtype=dtype, model=model, revision=revision, clip=clip, data=data, detector=detector,
        detector_text=detector_text, detector_class=detector_class,
    )  # fmt: skip
    with Bar("compare", quiet) as progress:
        comparison = api.compare(
            concepts,
            methods,
            attacks=ATTACKS if attacks == ["all"] else attacks or (),
            images=not skip_images,
            preset=preset,
            progress=progress,
            approve=opt.approval(yes),
            **settings,
        )
    if comparison.tables:
        comparison_tables(comparison.tables)
        print(f"{comparison.folder}: tables in comparison.md, all measurements in comparison.csv")
    for cell, reason in comparison.failed:
        print(f"erase-sd: {cell}: {reason}", file=sys.stderr)
    if comparison.failed:
        raise typer.Exit(1)


def evaluate(
    run: opt.OneRun,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of CIFAR-100, of webdataset shards, or with one folder per class.",
            show_default="the run's held-out pairs",
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Class prompt with {} for the class name; repeatable.",
            show_default="those of the CLIPErase paper",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="Another CLIP, or a BLIP to measure alone: a folder or a hub id.",
            show_default="the run's own",
        ),
    ] = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure CLIP before and after: zero-shot prediction, retrieval, drift of hidden states."""
    with Bar("evaluate", quiet) as progress:
        record = api.evaluate(
            run, images=images, templates=templates or (), clip=clip, progress=progress
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(record)))
    else:
        evaluation_table(record)


def explain(run: opt.OneRun) -> None:
    """Plot what an erasure did to CLIP: t-SNE of the held-out pairs, and attention maps."""
    for path in api.explain(run):
        print(path)
