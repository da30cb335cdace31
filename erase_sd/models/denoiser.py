"""The U-Net's own loss on images, as a function of the hidden states that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import open_image
from ..errors import ModelError
from .pipeline import encoders_of, image_size, open_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Denoiser:
    """The U-Net, VAE and noise schedule of a pipeline with one text encoder; all frozen."""

    pipe: DiffusionPipeline

    def latents(self, paths: Sequence[Path]) -> Tensor:
        """The VAE's latents of image files, resized to the pipeline's square, (n, channels, h, w)."""
        vae, size = self.pipe.vae, image_size(self.pipe)
        latents = []
        for path in paths:
            image = open_image(path).resize((size, size), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                out = vae.encode(pixels.to(vae.device, vae.dtype))
            mean = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
            latents.append(mean * vae.config.scaling_factor)
        return torch.cat(latents)

    def loss(self, latents: Tensor, hidden_states: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the U-Net's prediction at random timesteps, (n,).

        `latents` are (n, channels, h, w), `hidden_states` (n, tokens, width).
        """
        scheduler = self.pipe.scheduler
        times = torch.randint(len(scheduler.alphas_cumprod), (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha = scheduler.alphas_cumprod[times].to(latents)[:, None, None, None]
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        unet = self.pipe.unet
        predicted: Tensor = unet(
            noisy, times.to(latents.device), hidden_states.to(unet.dtype)
        ).sample
        return (predicted - target).float().square().flatten(1).mean(1)


def open_denoiser(folder: Path) -> Denoiser:
    """The denoiser of a Stable Diffusion folder. Raises ModelError if it has two text encoders, or no U-Net."""
    pipe = open_pipeline(folder)
    if not hasattr(pipe, "unet"):
        raise ModelError("has a transformer; needs a U-Net", field="model", value=folder)
    if len(encoders_of(pipe)) > 1:
        raise ModelError(
            "its U-Net reads two text encoders; needs one", field="model", value=folder
        )
    pipe.unet.requires_grad_(False)
    return Denoiser(pipe)
