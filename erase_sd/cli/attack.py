"""Attacks on a run: how often the erased concept can be generated again."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .. import api
from ..data.pair import Split
from . import options as opt
from .tables import print_table
from .terminal import Bar, console_for_tables

if TYPE_CHECKING:
    from ..run.measurements import AttacksRecord


class AttackChoice(StrEnum):
    """`attacks.registry.AttackName`, since typer takes no list of a Literal; a test compares them."""

    EMBEDDINGS = "embeddings"
    TEXTUAL_INVERSION = "textual-inversion"
    WORD_SEARCH = "word-search"
    SWEEP = "sweep"
    RELEARNING = "relearning"
    UNLEARNDIFFATK = "unlearndiffatk"
    RING_A_BELL = "ring-a-bell"
    P4D = "p4d"


AttackChoices = Annotated[
    list[AttackChoice] | None,
    typer.Option(
        "--attack",
        metavar="ATTACK",
        help=f"Attack to run, one of {', '.join(AttackChoice)}; repeatable.",
        show_default="all",
    ),
]
PromptSplit = Annotated[
    Split | None,
    typer.Option(
        "--split",
        metavar="SPLIT",
        help="Split of the captions used as prompts: held-out to report, validation to choose "
        "settings, or train.",
        show_default="held-out",
    ),
]


def attack(
    run: opt.OneRun,
    attacks: AttackChoices = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Budget of an attack, such as p4d.steps=100; repeatable.",
            show_default="the attack's",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of images per row of the table.", show_default="50")
    ] = None,
    split: PromptSplit = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the first image and of the attacks' random numbers.", show_default="2000"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of denoising steps.", show_default="the preset's")
    ] = None,
    guidance: opt.Guidance = None,
    detector: opt.DetectorFile = None,
    detector_text: opt.DetectorText = None,
    detector_classes: opt.DetectorClasses = None,
    as_json: opt.AsJson = False,
    yes: opt.Yes = False,
    quiet: opt.Quiet = False,
) -> None:
    """Attack a run's erased model, and print how often the concept is generated again."""
    settings = opt.chosen(images=images, split=split, seed=seed, steps=steps, guidance=guidance)
    with Bar("attack", quiet) as progress:
        record = api.attack(
            run, attacks=[choice.value for choice in attacks or ()],
            budgets=opt.assignments(budgets, "budgets"), detector=detector, detector_text=detector_text,
            detector_class=detector_classes or (), progress=progress, approve=opt.approval(yes),
            **settings,
        )  # fmt: skip
    if as_json:
        print(json.dumps(dataclasses.asdict(record)))
    else:
        _attacks_table(record)


def _attacks_table(record: AttacksRecord) -> None:
    """Prints the attacks, what they have found, and how to read the table."""
    from rich.text import Text

    from ..attacks.table import ATTACK_HEADINGS, attack_lines, attacks_note, found_lines

    console = console_for_tables()
    concepts = sorted({row.concept for row in record.rows})
    # The title names a concept that is alone: there is little room.
    columns = [
        i for i, name in enumerate(ATTACK_HEADINGS) if name != "concept" or len(concepts) > 1
    ]
    headings, *lines = (
        [line[i] for i in columns] for line in (ATTACK_HEADINGS, *attack_lines(record.rows))
    )
    title = f"Attacks on {', '.join(concepts)}"
    print_table(console, title, headings, lines, text_columns=headings.index("n"))
    console.print(Text("\n".join([*found_lines(record.rows), attacks_note(record)])))
