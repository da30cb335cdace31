"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError

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
Seed = Annotated[int | None, typer.Option(help="Of the batches.")]
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
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; the others keep the defaults of the settings."""
    return {name: value for name, value in options.items() if value is not None}


def weights_of(texts: list[str]) -> dict[str, Any]:
    """`name=value` texts as fields of a method; SettingError where one is not of that form."""
    weights: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise SettingError(f"--weight {text}: needs name=value")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = value
    return weights
