"""Caption pairs: what a dataset holds, and prompts from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..data.pair import Split
from . import options as opt
from .terminal import facts_table


def data(
    concepts: opt.Concepts,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="Folder of caption pairs.", show_default="the preset's"
        ),
    ] = None,
    synonyms: opt.Synonyms = None,
    keep_senses: opt.KeepSenses = None,
    preset: opt.PresetName = "mini",
    clip: opt.ClipFolders = None,
    mentions: Annotated[
        bool,
        typer.Option(
            "--mentions",
            help="Also list other words and phrases for the concept in the captions, found with CLIP.",
        ),
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Summarize a folder of caption pairs: its captions, the concept in them, and how they would be split."""
    from dataclasses import asdict

    from ..data.readers import read_dataset
    from ..data.summary import summarize, summary_lines
    from ..models.presets import resolve
    from ..models.tokens import token_limit_of
    from ..unlearning.mentions import mention_lines, mentions_of
    from ..unlearning.settings import parse_concepts

    models = resolve(preset, data=data).with_clips(clip)
    parsed = parse_concepts(concepts, synonyms or [], keep_senses or [])
    dataset, tokens = read_dataset(models.pairs(), parsed), token_limit_of(models)
    summary = summarize(dataset, parsed, tokens.counts, tokens.limit)
    mined = mentions_of(models, dataset, parsed) if mentions else {}
    if as_json:
        print(json.dumps(asdict(summary) | ({"mentions": mined} if mentions else {})))
    else:
        facts_table(summary.folder, summary_lines(summary))
        for line in mention_lines(mined):
            print(line)


def prompts(
    concepts: opt.Concepts,
    n: Annotated[int, typer.Option("--n", help="Maximum number of prompts, one per image.")] = 50,
    out: Annotated[
        Path | None,
        typer.Option(help="Prompt file to write.", show_default="prompts/<concept>.txt"),
    ] = None,
    retain: Annotated[
        bool, typer.Option("--retain", help="Also write retain.txt beside it, without the concept.")
    ] = False,
    split: Annotated[
        Split,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="Split to take captions from: held-out to report, validation to choose settings, or "
            "train.",
        ),
    ] = "held-out",
    synonyms: opt.Synonyms = None,
    keep_senses: opt.KeepSenses = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of captions.")] = 0,
    preset: opt.PresetName = "mini",
    clip: opt.ClipFolders = None,
    data: opt.Data = None,
) -> None:
    """Write captions of a dataset as a prompt file that states its source."""
    from ..data.prompts import PROMPTS_FOLDER, write_prompts
    from ..data.readers import read_dataset
    from ..models.presets import resolve
    from ..models.tokens import token_limit_of
    from ..run import run_folder
    from ..unlearning.settings import parse_concepts

    models = resolve(preset, data=data).with_clips(clip)
    parsed = parse_concepts(concepts, synonyms or [], keep_senses or [])
    file = out or PROMPTS_FOLDER / f"{run_folder(None, tuple(concepts)).name}.txt"
    dataset, tokens = read_dataset(models.pairs(), parsed), token_limit_of(models)
    counts = write_prompts(dataset, parsed, file, n, seed, tokens.fits, retain, split)
    for path, count in counts.items():
        note = "" if count == n else f"; no more {split} images have a suitable caption"
        print(f"{path}: {count} prompt{'s' * (count != 1)}{note}")
