"""The U-Net's own loss on photographs, as a judge of what a text encoder asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import ImageSource, open_image
from ..models.pipeline import image_size
from .target import Embeds, Target


@dataclass(frozen=True)
class NoisyBatch:
    """Noisy latents and what the U-Net should return for them."""

    latents: Tensor
    """(n, channels, height, width)."""
    times: Tensor
    """Timesteps, (n,)."""
    answer: Tensor
    """Noise, or velocity, as `latents`."""


def photograph_latents(target: Target, photographs: Sequence[ImageSource]) -> Tensor:
    """The VAE's latents of photographs, fitted into the pipeline's square, (n, channels, h, w)."""
    pipe, size = target.pipe, image_size(target.pipe)
    latents = []
    for path in photographs:
        image = open_image(path).resize((size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            out = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype))
        mean = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        latents.append(mean * pipe.vae.config.scaling_factor)
    return torch.cat(latents)


def noisy(target: Target, latents: Tensor, generator: torch.Generator) -> NoisyBatch:
    """Latents with noise of timesteps that are spread evenly, one in each of n strata."""
    scheduler, n = target.pipe.scheduler, len(latents)
    alphas = scheduler.alphas_cumprod.to(latents.device)
    shares = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    times = (shares * len(alphas)).long().to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    alpha = alphas[times][:, None, None, None]
    answer = noise
    if scheduler.config.prediction_type == "v_prediction":
        answer = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    return NoisyBatch(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, times, answer)


def predict(target: Target, batch: NoisyBatch, embeds: Embeds, *, original: bool = False) -> Tensor:
    """The erased U-Net's answer under the prompts, or the original's."""
    extra: dict[str, Any] = {}
    if "pooled_prompt_embeds" in embeds:  # SDXL also reads the sizes of the image
        size = image_size(target.pipe)
        sizes = torch.tensor([[size, size, 0, 0, size, size]] * len(batch.times))
        pooled = embeds["pooled_prompt_embeds"]
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.to(pooled)}}
    states = embeds["prompt_embeds"]
    unet = target.pipe.unet if original else target.unet or target.pipe.unet
    answer: Tensor = unet(batch.latents, batch.times, states, **extra).sample
    return answer


def denoising_loss(target: Target, batch: NoisyBatch, embeds: Embeds) -> Tensor:
    """Squared error of the U-Net's answer under the prompts, mean over all."""
    return (predict(target, batch, embeds) - batch.answer).square().mean()
