"""How much of an erasure a LoRA carries: its output compared with the erased module's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .denoiser import open_denoiser
from .pipeline import embed

TEMPLATES = (
    "{}", "a {}", "a photo of a {}", "a {} on a table", "a man next to a {}", "two {}s in a park",
    "a close-up of a {}", "a dog and a {}",
)  # fmt: skip
"""Captions of the concept on which the residual is measured."""


@dataclass(frozen=True, kw_only=True)
class LoraQuality:
    """The entry of `lora.json` for one text encoder, or for the U-Net."""

    rank: int
    weight_residual: float
    left_out: dict[str, float]
    output_residual: float
    """Distance of the output from the erased module's, relative to the original's distance from it, on
    captions of the concept; 0 is the same as the erased module, 1 as far away as the original. The output
    of a text encoder is its hidden states, that of a U-Net its prediction."""


def hidden_residual(
    original: Any, erased: Any, lora: Any, tokenizer: Any, concepts: Sequence[str]
) -> float:
    """`LoraQuality.output_residual` of a text encoder, over the captions `TEMPLATES` of every concept."""
    length = original.config.max_position_embeddings
    ids = tokenizer(
        _captions(concepts), padding="max_length", max_length=length, truncation=True,
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    with torch.no_grad():
        states = [encoder(ids).last_hidden_state for encoder in (original, erased, lora)]
    return _residual(*states)


def prediction_residual(model: Path, erased: Any, lora: Any, concepts: Sequence[str]) -> float:
    """`LoraQuality.output_residual` of a U-Net, over the captions `TEMPLATES` of every concept.

    `model` is the original pipeline's folder. The U-Net denoises a noisy grey image under each caption,
    each at a timestep of its own, with one seed.
    """
    denoiser = open_denoiser(model, "fp32")
    captions = _captions(concepts)
    grey = torch.zeros(len(captions), *denoiser.latent_shape)
    noisy, _ = denoiser.add_noise(grey, torch.Generator().manual_seed(0))
    with torch.no_grad():
        prompts = embed(denoiser.pipe, captions)
        predictions = [
            dataclasses.replace(denoiser, unet=unet.to(denoiser.device)).predict(noisy, prompts)
            for unet in (denoiser.unet, erased, lora)
        ]
    return _residual(*predictions)


def _captions(concepts: Sequence[str]) -> list[str]:
    return [template.format(concept) for concept in concepts for template in TEMPLATES]


def _residual(original: Tensor, erased: Tensor, lora: Tensor) -> float:
    distance = float((original - erased).norm())
    return round(float((lora - erased).norm()) / distance, 4) if distance else 0.0
