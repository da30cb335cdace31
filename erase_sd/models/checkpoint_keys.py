"""Names that other programs give a text encoder's tensors, and where they keep them in one file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, RunError
from .tensors import in_precision, read_tensors
from .text_encoder import load_text_encoder
from .towers import WEIGHTS_FILE
from .unet import UNET

FILE_NAMES = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
"""Customary file names of the three common text towers, by width."""


@dataclass(frozen=True)
class EncoderPlace:
    """Where a single-file checkpoint keeps a text encoder."""

    prefix: str
    open_clip: bool = False
    """Whether the tensors are named as in OpenCLIP, else as on the hub."""


ENCODER_PLACES = {
    ("text_encoder", 1): (
        EncoderPlace("cond_stage_model.transformer."),
        EncoderPlace("cond_stage_model.model.", open_clip=True),
        EncoderPlace("text_encoders.clip_l.transformer."),
    ),
    ("text_encoder", 2): (
        EncoderPlace("conditioner.embedders.0.transformer."),
        EncoderPlace("text_encoders.clip_l.transformer."),
    ),
    ("text_encoder_2", 2): (
        EncoderPlace("conditioner.embedders.1.model.", open_clip=True),
        EncoderPlace("text_encoders.clip_g.transformer."),
    ),
}
"""Possible places by the encoder's name and the pipeline's number of encoders."""

LAYER_NAMES = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
OTHER_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def hub_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named as in hub repositories: `text_model.*`, `text_projection.weight`."""
    own = ("text_model.", "text_projection.")
    return {n if n.startswith(own) else f"text_model.{n}": t for n, t in sorted(tensors.items())}


def named_weights(name: str, module: Any) -> dict[str, Tensor]:
    """The parameters of the pipeline's module of that name, compiled or not, without those of LoRA
    adapters: a text encoder's as in `hub_names`, a U-Net's as in diffusers."""
    parameters: dict[str, Tensor] = {
        own.replace("_orig_mod.", "").replace(".base_layer.", "."): parameter
        for own, parameter in module.named_parameters()
        if ".lora_" not in own
    }
    return parameters if name == UNET else hub_names(parameters)


def open_clip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `hub_names` as in OpenCLIP: query, key and value in one matrix, the projection
    transposed."""
    renamed = {theirs: tensors[ours] for ours, theirs in OTHER_NAMES.items()}
    if "text_projection.weight" in tensors:
        renamed["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    layer = 0
    while f"text_model.encoder.layers.{layer}.mlp.fc1.weight" in tensors:
        ours, theirs = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for module, their_module in LAYER_NAMES.items():
                renamed[f"{theirs}{their_module}.{kind}"] = tensors[f"{ours}{module}.{kind}"]
            projections = [tensors[f"{ours}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            renamed[f"{theirs}attn.in_proj_{kind}"] = torch.cat(projections)
        layer += 1
    return renamed


def encoder_file(folder: Path, name: str, width: int) -> Path:
    """Where to write the text encoder `name`: the customary file name for its width, with `name` appended
    if the pipeline's other encoder is equally wide and has taken it."""
    file = folder / f"{FILE_NAMES.get(width, f'clip_{width}')}.safetensors"
    return file.with_stem(f"{file.stem}-{name}") if file.exists() else file


def encoder_tensors(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of an erased encoder's folder, in `hub_names`.

    Raises ModelError for weights that are not finite or do not fit their configuration.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    expected = {n: t.shape for n, t in load_text_encoder(folder).state_dict().items()}
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            raise RunError(f"{path}: {name} has the shape {tuple(tensors[name].shape)}")
    return in_precision(hub_names(tensors), dtype, path)


def encoder_in_place(
    names: Collection[str], encoder: tuple[str, int], weights: Mapping[str, Tensor], base: Path
) -> dict[str, Tensor]:
    """A text encoder's tensors under the names of the single-file checkpoint `base`, which holds `names`.

    `encoder` is its name, and how many the pipeline has. Raises ModelError if the checkpoint has none.
    """
    places = ENCODER_PLACES[encoder]
    place = next((p for p in places if any(key.startswith(p.prefix) for key in names)), None)
    if place is None:
        raise ModelError(f"has no {encoder[0]} of this kind of model", field="base", value=base)
    own = open_clip_names(weights) if place.open_clip else weights
    return {place.prefix + key: tensor for key, tensor in own.items()}
