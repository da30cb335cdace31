"""Pipelines whose transformer reads T5 beside CLIP: Stable Diffusion 3 and FLUX.1, by their own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DEV_LENGTH, SCHNELL_LENGTH = 512, 256
"""Context lengths of T5 in FLUX.1-dev, and in FLUX.1-schnell, which was distilled at half of it."""


def denoising_model(pipe: DiffusionPipeline) -> Any:
    """The pipeline's U-Net, or the transformer of Stable Diffusion 3 and FLUX.1."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def embed_with_t5(pipe: DiffusionPipeline, texts: list[str]) -> dict[str, Tensor]:
    """`prompt_embeds` (n, tokens, width) and `pooled_prompt_embeds` (n, projection) of the texts."""
    if type(pipe).__name__ == "FluxPipeline":
        length = DEV_LENGTH if pipe.transformer.config.guidance_embeds else SCHNELL_LENGTH
        states, pooled, _ = pipe.encode_prompt(texts, texts, max_sequence_length=length)
    else:
        states, _, pooled, _ = pipe.encode_prompt(
            texts, texts, texts, do_classifier_free_guidance=False
        )
    return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}


def flux_pixels(
    pipe: DiffusionPipeline,
    embeds: Mapping[str, Tensor],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Pixels (n, 3, height, width), 0-1, of FLUX.1's images, each from the noise of its own seed, which
    is sampled on the CPU."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    out = pipe(
        **embeds, generator=generators, num_inference_steps=steps, guidance_scale=guidance,
        output_type="pt",
    )  # fmt: skip
    pixels: Tensor = out.images
    return pixels
