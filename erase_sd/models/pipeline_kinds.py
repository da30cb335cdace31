"""The diffusers pipelines that are supported: their CLIP text encoders, and what is read of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from ..reading import read_json
from .clip import Tap
from .source import check_config, foreign_files

LAST, PENULTIMATE = "last", "penultimate"
PIPELINES: dict[str, dict[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": {"text_encoder": (LAST,)},
    "StableDiffusionXLPipeline": {
        "text_encoder": (PENULTIMATE,), "text_encoder_2": (PENULTIMATE, LAST),
    },
    "StableDiffusion3Pipeline": {
        "text_encoder": (PENULTIMATE, LAST), "text_encoder_2": (PENULTIMATE, LAST),
    },
    "FluxPipeline": {"text_encoder": (LAST,)},
}  # fmt: skip
"""The layers of each CLIP text encoder that a pipeline's U-Net or transformer reads.

Stable Diffusion 1 and 2: the last layer after the norm (SD 2's encoder is ViT-H/14 without its 24th
layer). SDXL: the penultimate layer of both, without the norm, and the second encoder's pooled output,
which is taken from its last layer. Stable Diffusion 3: both of each encoder. FLUX.1: the pooled output.
"""


@dataclass(frozen=True)
class TextEncoder:
    """One CLIP text encoder of a diffusers pipeline."""

    folder: Path
    taps: tuple[Tap, ...]
    """Hidden states that the U-Net or transformer reads."""

    @property
    def name(self) -> str:
        """The encoder's name in the pipeline."""
        return self.folder.name

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder. Padding differs between models, and the U-Net reads the padding."""
        return self.folder.with_name(self.name.replace("text_encoder", "tokenizer"))


def kind_of(model: Path) -> str:
    """The pipeline class of a diffusers folder. Raises ModelError for one that is not supported."""
    kind = str(read_json(model / "model_index.json").get("_class_name"))
    if kind not in PIPELINES:
        raise ModelError(
            f"is a {kind}; needs one of {', '.join(PIPELINES)}", field="model", value=model
        )
    return kind


def text_encoders(model: Path) -> list[TextEncoder]:
    """The CLIP text encoders of a folder, with the hidden states that are read of them.

    Raises ModelError for a pipeline that is not supported, and for a missing encoder.
    """
    encoders = []
    for name, layers_read in PIPELINES[kind_of(model)].items():
        check_config(model / name)
        with foreign_files(model / name):
            layers = int(read_json(model / name / "config.json").get("num_hidden_layers", 0))
        taps = {LAST: Tap(layers, norm=True), PENULTIMATE: Tap(layers - 1, norm=False)}
        own = tuple(taps[layer] for layer in layers_read)
        if min(tap.layer for tap in own) < 1:
            raise ModelError(f"{model / name}: has {layers} layers, needs at least {len(own)}")
        encoders.append(TextEncoder(model / name, own))
    return encoders


def left_out(model: Path) -> list[str]:
    """Components that the folder leaves out, as Stable Diffusion 3 may its T5."""
    index = read_json(model / "model_index.json")
    return [name for name, part in index.items() if part == [None, None]]


def other_encoders(model: Path) -> dict[str, str]:
    """The class of each text encoder that is not a CLIP's, by name: T5, in Stable Diffusion 3 and FLUX.1."""
    index = read_json(model / "model_index.json")
    return {
        name: str(part[1])
        for name, part in index.items()
        if name.startswith("text_encoder")
        and name not in PIPELINES[kind_of(model)]
        and name not in left_out(model)
    }


def not_erased(model: Path) -> str | None:
    """A sentence about the text encoders that erase-sd leaves as they are; None if there is none."""
    others = [f"{name} ({kind})" for name, kind in other_encoders(model).items()]
    if not others:
        return None
    return (
        f"{', '.join(others)} is not erased: T5 still knows the word, and the transformer reads it, so "
        "that images may still show the concept"
    )
