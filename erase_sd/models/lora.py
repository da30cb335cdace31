"""The change of an erased text encoder or U-Net as a LoRA (Hu et al. 2022, arXiv 2106.09685), by SVD.

A LoRA adds a matrix of low rank to the weight of a linear layer or a convolution. It cannot carry the
change of biases, norms and embeddings; what that costs is measured in `lora_quality`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint_keys import named_weights
from .source import foreign_files
from .unet import UNET

RANK = 32
"""Default rank; on the miniature world the residual hardly falls above it."""
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""By weight: down (rank, inputs) and up (outputs, rank), whose product up @ down is added; for a
convolution, down (rank, inputs, height, width) and up (outputs, rank, 1, 1)."""
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, kw_only=True)
class LowRankChange:
    """The change of a text encoder, named as on the hub, or of a U-Net, named as in diffusers: a pair of
    factors for each of its linear layers and convolutions."""

    rank: int
    """That of all factors; at most the one that was asked for."""
    factors: Factors
    weight_residual: float
    """Norm of the part of the layers' change that the rank truncates, relative to the whole; 0-1."""
    left_out: dict[str, float]
    """Norm of the change of "bias", "norm" and "embedding", relative to that of all weights; 0-1."""


def low_rank_change(
    base: Mapping[str, Tensor], erased: Mapping[str, Tensor], rank: int = RANK
) -> LowRankChange:
    """The best approximation of `erased - base` at that rank (Eckart and Young 1936), layer by layer.

    Both are named as in `named_weights`. A layer that is narrower than `rank` keeps its whole change; all
    factors have one rank, narrower ones with zeros, because diffusers scales them all by that of one.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    squares = dict.fromkeys(("linear", "truncated", "bias", "norm", "embedding"), 0.0)
    for name, tensor in erased.items():
        change = tensor.float() - base[name].float()
        part = _part(name, tensor)
        squares[part] += float(change.double().square().sum())
        if part == "linear" and change.any():
            u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
            root = s[:rank].sqrt()
            down, up = root[:, None] * v[:rank], u[:, :rank] * root
            if change.ndim == 4:  # a convolution: its kernel is in the first factor
                down, up = down.unflatten(1, change.shape[1:]), up[..., None, None]
            factors[name] = (down.contiguous(), up.contiguous())
            squares["truncated"] += float(s[rank:].double().square().sum())
    truncated, linear = squares.pop("truncated"), squares["linear"]
    whole = sum(squares.values())
    rank = max((len(down) for down, _ in factors.values()), default=rank)
    return LowRankChange(
        rank=rank,
        factors={name: _padded(down, up, rank) for name, (down, up) in factors.items()},
        weight_residual=_root(truncated, linear),
        left_out={
            part: _root(square, whole) for part, square in squares.items() if part != "linear"
        },
    )


def _padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors with zeros up to `rank`; their product stays the same."""
    more = rank - len(down)
    down = torch.cat((down, down.new_zeros(more, *down.shape[1:])))
    return down, torch.cat((up, up.new_zeros(len(up), more, *up.shape[2:])), dim=1)


def _part(name: str, tensor: Tensor) -> str:
    """Which part of the model a weight belongs to: linear (or convolution), bias, norm or embedding."""
    if "token_embedding" in name or "position_embedding" in name:
        return "embedding"
    if "norm" in name:
        return "norm"
    return "linear" if tensor.ndim > 1 else "bias"


def _root(square: float, whole: float) -> float:
    return round((square / whole) ** 0.5, 4) if whole else 0.0


def with_strength(name: str, module: Any, factors: Factors, strength: float = 1.0) -> Any:
    """A copy of the original module of that name with the LoRA merged into it at that strength."""
    merged = copy.deepcopy(module)
    weights = named_weights(name, merged)
    with torch.no_grad():
        for weight, (down, up) in factors.items():
            own = weights[weight]
            change = strength * (up.float().flatten(1) @ down.float().flatten(1))
            own += change.view_as(own).to(own.device, own.dtype)
    return merged


def kohya_tensors(name: str, numbered: bool, change: LowRankChange) -> dict[str, Tensor]:
    """In kohya's layout, which ComfyUI, A1111 and Forge read.

    `<prefix><layer>.lora_down.weight`, `.lora_up.weight` and `.alpha`. The prefix is `lora_unet_` for
    a U-Net, whose layers have the names of diffusers, and `lora_te_` for a text encoder; those of SDXL,
    Stable Diffusion 3 and FLUX.1 are `numbered`, `lora_te1_` and `lora_te2_`. `name` is the module's
    in the pipeline.
    """
    number = ("2" if name.endswith("_2") else "1") if numbered else ""
    prefix = "lora_unet_" if name == UNET else f"lora_te{number}_"
    tensors = {}
    for weight, (down, up) in change.factors.items():
        key = prefix + weight.removesuffix(".weight").replace(".", "_")
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))  # scale alpha / rank = 1
    return tensors


def peft_tensors(prefix: str, change: LowRankChange) -> dict[str, Tensor]:
    """In the layout of PEFT: `<prefix><layer>.lora_A.weight` and `.lora_B.weight`.

    diffusers reads it with the component's name in front (`text_encoder.`, `unet.`), PEFT itself with
    `base_model.model.`.
    """
    tensors = {}
    for weight, (down, up) in change.factors.items():
        layer = prefix + weight.removesuffix(".weight")
        tensors[layer + _DOWN], tensors[layer + _UP] = down, up
    return tensors


def read_factors(path: Path) -> Mapping[str, Factors]:
    """The factors in a LoRA file for diffusers, by module and weight, as float32; ModelError for a
    damaged file."""
    factors: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    with foreign_files(path):
        tensors = load_file(path)
        for key, up in tensors.items():
            if key.endswith(_UP):
                name, _, layer = key.removesuffix(_UP).partition(".")
                down = tensors[f"{name}.{layer}{_DOWN}"]
                factors.setdefault(name, {})[f"{layer}.weight"] = (down.float(), up.float())
    return factors
