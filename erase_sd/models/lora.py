"""The change of an erased text encoder or U-Net as a LoRA (Hu et al. 2022, arXiv 2106.09685), by SVD.

A LoRA adds a matrix of low rank to the weight of a linear layer. It cannot carry the change of biases,
norms and embeddings; what that costs is measured on the encoder's output.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint_keys import hub_names

RANK = 32
"""Default rank; on the miniature world the residual hardly falls above it."""
TEMPLATES = (
    "{}", "a {}", "a photo of a {}", "a {} on a table", "a man next to a {}", "two {}s in a park",
    "a close-up of a {}", "a dog and a {}",
)  # fmt: skip
"""Captions of the concept on which the residual is measured."""

_KOHYA_UP = re.compile(
    r"lora_te([12]?)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)\.lora_up\.weight"
)


@dataclass(frozen=True, kw_only=True)
class LowRankChange:
    """The change of a text encoder, named as on the hub, or of a U-Net, named as in diffusers: a pair of
    factors for each of its linear layers and convolutions."""

    rank: int
    factors: dict[str, tuple[Tensor, Tensor]]
    """By weight: down (rank, inputs) and up (outputs, rank), whose product up @ down is added; of a
    convolution down (rank, inputs, height, width) and up (outputs, rank, 1, 1)."""
    weight_residual: float
    """Norm of the layers' change that is above the rank, relative to their whole change; 0-1."""
    left_out: dict[str, float]
    """Norm of the change of "bias", "norm" and "embedding", relative to that of all weights; 0-1."""


@dataclass(frozen=True, kw_only=True)
class LoraQuality:
    """What `lora.json` says of one text encoder."""

    rank: int
    weight_residual: float
    left_out: dict[str, float]
    hidden_residual: float
    """Distance of the hidden states from the erased encoder's, relative to the original's distance
    from it, on captions of the concept; 0: the same as the erased encoder, 1: as the original."""


def low_rank_change(
    base: Mapping[str, Tensor], erased: Mapping[str, Tensor], rank: int = RANK
) -> LowRankChange:
    """The best approximation of `erased - base` at that rank (Eckart and Young 1936), layer by layer.

    Both are named as in `checkpoint_keys.hub_names`. A layer that is narrower than `rank` keeps its
    whole change.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    squares = dict.fromkeys(("linear", "truncated", "bias", "norm", "embedding"), 0.0)
    for name, tensor in erased.items():
        change = tensor.float() - base[name].float()
        part = _part(name, tensor)
        squares[part] += float(change.square().sum())
        if part == "linear" and change.any():
            u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
            root = s[:rank].sqrt()
            down, up = root[:, None] * v[:rank], u[:, :rank] * root
            if change.ndim == 4:  # a convolution: its kernel is in the first factor
                down, up = down.unflatten(1, change.shape[1:]), up[..., None, None]
            factors[name] = (down.contiguous(), up.contiguous())
            squares["truncated"] += float(s[rank:].square().sum())
    truncated, linear = squares.pop("truncated"), squares["linear"]
    whole = sum(squares.values())
    return LowRankChange(
        rank=rank,
        factors=factors,
        weight_residual=_root(truncated, linear),
        left_out={
            part: _root(square, whole) for part, square in squares.items() if part != "linear"
        },
    )


def _part(name: str, tensor: Tensor) -> str:
    """Which part of the model a weight belongs to: linear (or convolution), bias, norm or embedding."""
    if "token_embedding" in name or "position_embedding" in name:
        return "embedding"
    if "norm" in name:
        return "norm"
    return "linear" if tensor.ndim > 1 else "bias"


def _root(square: float, whole: float) -> float:
    return round((square / whole) ** 0.5, 4) if whole else 0.0


def with_strength(
    encoder: Any, factors: Mapping[str, tuple[Tensor, Tensor]], strength: float = 1.0
) -> Any:
    """A copy of the original text encoder with the LoRA merged into it at that strength."""
    merged = copy.deepcopy(encoder)
    weights = hub_names(dict(merged.named_parameters()))
    with torch.no_grad():
        for name, (down, up) in factors.items():
            change = strength * (up.float() @ down.float())
            weights[name] += change.to(weights[name].device, weights[name].dtype)
    return merged


def hidden_residual(
    original: Any, erased: Any, lora: Any, tokenizer: Any, concepts: Sequence[str]
) -> float:
    """`LoraQuality.hidden_residual` of `lora`, over the captions `TEMPLATES` of every concept."""
    texts = [template.format(concept) for concept in concepts for template in TEMPLATES]
    length = original.config.max_position_embeddings
    ids = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        target, before, after = (
            encoder(ids).last_hidden_state for encoder in (erased, original, lora)
        )
    distance = float((before - target).norm())
    return round(float((after - target).norm()) / distance, 4) if distance else 0.0


def kohya_tensors(name: str, numbered: bool, change: LowRankChange) -> dict[str, Tensor]:
    """In kohya's layout, which ComfyUI, A1111 and Forge read.

    `lora_te_<layer>.lora_down.weight`, `.lora_up.weight` and `.alpha`. The encoders of SDXL, Stable
    Diffusion 3 and FLUX.1 are `numbered`, `te1` and `te2`. `name` is the encoder's in the pipeline.
    """
    number = "2" if name.endswith("_2") else "1"
    return _kohya(f"lora_te{number if numbered else ''}_", change)


def _kohya(prefix: str, change: LowRankChange) -> dict[str, Tensor]:
    tensors = {}
    for weight, (down, up) in change.factors.items():
        key = prefix + weight.removesuffix(".weight").replace(".", "_")
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))  # scale alpha / rank = 1
    return tensors


def kohya_unet_tensors(change: LowRankChange) -> dict[str, Tensor]:
    """A U-Net's change in kohya's layout: `lora_unet_<layer>.lora_down.weight`, `.lora_up.weight` and
    `.alpha`, with the names of diffusers."""
    return _kohya("lora_unet_", change)


def read_kohya(path: Path) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """The factors in a file of `kohya_tensors`, by the encoder's name and its weight, as float32."""
    tensors = load_file(path)
    factors: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for key, up in tensors.items():
        if match := _KOHYA_UP.fullmatch(key):
            number, layer, block, module = match.groups()
            name = "text_encoder_2" if number == "2" else "text_encoder"
            weight = f"text_model.encoder.layers.{layer}.{block}.{module}.weight"
            down = tensors[key.replace("lora_up", "lora_down")]
            factors.setdefault(name, {})[weight] = (down.float(), up.float())
    return factors


def peft_tensors(prefix: str, change: LowRankChange) -> dict[str, Tensor]:
    """In the layout of PEFT: `<prefix><layer>.lora_A.weight` and `.lora_B.weight`.

    diffusers reads it with the component's name in front (`text_encoder.`, `unet.`), PEFT itself with
    `base_model.model.`.
    """
    tensors = {}
    for weight, (down, up) in change.factors.items():
        layer = prefix + weight.removesuffix(".weight")
        tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"] = down, up
    return tensors
