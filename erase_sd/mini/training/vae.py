"""Trains the miniature VAE."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .data import TRAIN_SCENES, random_images, scenes_of, signed
from .fit import fit


def build_vae(folder: Path) -> None:
    """An `AutoencoderTiny` with four latent channels at a quarter of the size.

    Latent noise of standard deviation 0.1 and a small penalty on the latents' size make it a VAE of
    fixed variance: nearby latents decode alike, so small errors of the U-Net stay small.
    """
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )
    vae = vae.to(memory_format=torch.channels_last)
    images = scenes_of(folder)[:TRAIN_SCENES]

    def loss(generator: torch.Generator) -> Tensor:
        x = random_images(images, 32, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latents
            noise = torch.randn(z.shape, generator=generator)
            y = vae.decode(z + 0.1 * noise).sample.float()
        error = y - x
        edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
        sharp: Tensor = error.abs().mean() + 2 * error.square().mean() + edges
        small: Tensor = z.float().square().mean()
        return sharp + 5e-4 * small

    fit("vae", vae, loss, steps=2_500, learning_rate=2e-3, folder=folder)
    with torch.no_grad():
        z = torch.cat([vae.encode(signed(x)).latents for x in torch.split(images[:2048], 64)])
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))
    vae.save_pretrained(folder / "sd" / "vae")
