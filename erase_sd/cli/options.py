"""Options that several commands share. An option's Python name is the library's field."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError
from ..generation.cost import MANY_IMAGES, cost_line
from ..models.choices import Sampler
from ..models.presets import PRESETS, Preset
from ..runtime import Approval, Precision

RUN_HELP = "Name of a run under runs/, or a run folder."
PRESET_HELP = (
    f"Base model, one of {', '.join(PRESETS)}, and the CLIP, caption pairs and detector that go "
    "with it."
)

Concepts = Annotated[
    list[str],
    typer.Option(
        "--concept", metavar="WORD", help="Word to erase; repeat it for several concepts."
    ),
]
Synonyms = Annotated[
    list[str] | None,
    typer.Option(
        "--synonym",
        metavar="WORD",
        help="Another word for the concept, erased with it; repeatable. With several concepts: "
        "concept=synonym.",
    ),
]
KeepSenses = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-sense",
        metavar="PHRASE",
        help='Phrase with the word in another sense, not to erase, such as "apple laptop"; '
        "repeatable.",
    ),
]
RunName = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN", help=RUN_HELP, show_default="named after the concepts"),
]
RunOfPrompts = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="RUN", help=RUN_HELP, show_default="named after the first prompt file"
    ),
]
OneRun = Annotated[str, typer.Option("--run", metavar="RUN", help=RUN_HELP)]
PresetName = Annotated[Preset, typer.Option("--preset", metavar="PRESET", help=PRESET_HELP)]
RunPreset = Annotated[
    Preset | None,
    typer.Option("--preset", metavar="PRESET", help=PRESET_HELP, show_default="the run's own"),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Stable Diffusion or FLUX.1: a diffusers folder, a hub id, or a single .safetensors "
        "file (Stable Diffusion only).",
        show_default="the preset's",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="Branch, tag or commit of a model on the hub.",
        show_default="the latest",
    ),
]
ClipFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--clip",
        metavar="CLIP",
        help="CLIP that the model's text encoder belongs to, in transformers format: a folder or a "
        "hub id; two for SDXL and SD 3.5. With preset mini and without --model: a CLIP or BLIP to "
        "unlearn alone.",
        show_default="the preset's",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Caption pairs: a folder of Flickr30K, CIFAR-100, webdataset shards, or with one folder "
        "of images per class; or synth, pairs that the model generates itself.",
        show_default="the preset's",
    ),
]
DetectorFile = Annotated[
    Path | None,
    typer.Option(
        "--detector",
        metavar="FILE",
        help="Object detector: weights of YOLOv5 (.safetensors or .pt) or of another YOLO of "
        "ultralytics (.pt); nothing in the file is run.",
        show_default="the preset's",
    ),
]
DetectorText = Annotated[
    str | None,
    typer.Option(
        "--detector-text",
        metavar="ENCODER",
        help="Text encoder of an open-vocabulary detector, which can then detect any word: a CLIP "
        "ViT-B/32 (folder or hub id) for YOLO-World; for YOLOE a TorchScript file of MobileCLIP, whose "
        "code is run, so name only one that you trust.",
    ),
]
DetectorClasses = Annotated[
    list[str] | None,
    typer.Option(
        "--detector-class",
        metavar="CLASS",
        help="Class of the detector that shows the concept; concept=class for one of several.",
        show_default="the concept's name",
    ),
]

Prompts = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Prompt file, one prompt per line; repeatable. `retain.txt` beside it is added.",
    ),
]
Kinds = Annotated[
    bool,
    typer.Option(
        "--kinds",
        help="Add the prompt files of other kinds beside these, such as apple.synonym.txt.",
    ),
]
Reference = Annotated[
    bool,
    typer.Option(
        "--reference", help="Also generate the original's images of the concept-removed prompts."
    ),
]
ImagesPerPrompt = Annotated[
    int | None, typer.Option(help="Images per prompt, each with its own seed.", show_default="1")
]
DenoisingSteps = Annotated[
    int | None,
    typer.Option("--steps", help="Number of denoising steps.", show_default="the preset's"),
]
SamplerChoice = Annotated[
    Sampler | None,
    typer.Option(
        "--sampler",
        help="Sampler: the solver of the diffusion equation.",
        show_default="the preset's",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance.", show_default="the preset's"),
]
ImageSeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of the first image.", show_default="1000")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch", help="Images per batch.", show_default="by image size: 25, 8 or 2"),
]
ImageDtype = Annotated[
    Precision | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Precision of image generation, fp32, bf16, fp16 or auto: bf16 on CUDA and on CPUs "
        "with bfloat16 instructions, else fp32.",
        show_default="auto",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the denoiser, which takes a minute; for hundreds of images on a GPU.",
    ),
]

ByClass = Annotated[
    bool, typer.Option("--by-class", help="Print one line per class, look-alikes included.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Hide the progress bars.")]


Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before a long run.")]


def approval(yes: bool) -> Approval:
    """Asks a person at a terminal before MANY_IMAGES, unless they said `yes`; others are not held up."""

    def approve(images: int, seconds: float | None) -> None:
        if images >= MANY_IMAGES and not yes and sys.stdin and sys.stdin.isatty():
            typer.confirm(f"{cost_line(images, seconds)}. Continue?", abort=True, err=True)

    return approve


def chosen(**options: Any) -> dict[str, Any]:
    """The options that were set; the library's defaults apply to the others."""
    return {name: value for name, value in options.items() if value is not None}


def assignments(texts: list[str] | None, field: str) -> dict[str, str]:
    """`name=value` texts. Raises SettingError, about `field`, for a text of another form."""
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise SettingError("needs name=value", field=field, value=text)
        values[name] = value
    return values


def parse_hyperparameters(texts: list[str] | None) -> dict[str, Any]:
    """`assignments` as fields of a method."""
    return {name: _number(v) for name, v in assignments(texts, "hyperparameters").items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
