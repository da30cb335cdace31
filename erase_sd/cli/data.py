"""Caption pairs: what a dataset holds, and prompts from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .app import app
from .options import AsJson, ClipFolder, Concept, Data, KeepSense, Preset, Synonym
from .terminal import facts_table

if TYPE_CHECKING:
    from ..data.split import Part

PANEL = "Data"


@app.command(rich_help_panel=PANEL)
def data(
    concept: Concept,
    folder: Annotated[Path | None, typer.Argument(help="Flickr30K folder.")] = None,
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    preset: Preset = "mini",
    clip: ClipFolder = None,
    as_json: AsJson = False,
) -> None:
    """Look at a Flickr30K folder: what it holds of a concept, and how it would be split."""
    from dataclasses import asdict

    from ..data.flickr30k import read
    from ..data.summary import cells, summarize
    from ..models.presets import resolve
    from ..models.tokens import ruler_of
    from ..unlearning.settings import concepts_from

    models = resolve(preset, clip=clip, data=folder)
    concepts = concepts_from(concept, synonym or [], keep_sense or [])
    pairs, ruler = read(models.pairs()), ruler_of(models)
    found = summarize(pairs, concepts, ruler.lengths, ruler.limit)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        facts_table(found.folder, cells(found))


@app.command(rich_help_panel=PANEL)
def prompts(
    concept: Concept,
    n: Annotated[int, typer.Option("--n", help="Most prompts, one an image.")] = 50,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: prompts/<concept>.txt.")
    ] = None,
    retain: Annotated[bool, typer.Option(help="Write a retain.txt beside it too.")] = False,
    part: Annotated[
        str, typer.Option(help="held-out, to report on, or validation, to choose settings by.")
    ] = "held-out",
    synonym: Synonym = None,
    keep_sense: KeepSense = None,
    seed: Annotated[int, typer.Option(help="Of which of the captions are taken.")] = 0,
    preset: Preset = "mini",
    clip: ClipFolder = None,
    data: Data = None,
) -> None:
    """Write captions of a dataset as prompts, with a line that says where from."""
    from ..data.flickr30k import read
    from ..data.prompts import from_data
    from ..models.presets import resolve
    from ..models.tokens import ruler_of
    from ..run import folder_of
    from ..unlearning.settings import concepts_from

    models = resolve(preset, clip=clip, data=data)
    concepts = concepts_from(concept, synonym or [], keep_sense or [])
    file = out or Path("prompts") / f"{folder_of(None, tuple(concept)).name}.txt"
    written = from_data(
        read(models.pairs()),
        concepts,
        file,
        n,
        seed,
        ruler_of(models).fits,
        retain,
        cast("Part", part),
    )
    for path, count in written.items():
        note = "" if count == n else f"; the {part} images give no more than {count}"
        print(f"{path}: {count} prompts{note}")
