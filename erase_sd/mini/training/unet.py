"""Trains the miniature U-Net and saves the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..scenes import sample
from .data import SCENES, captions_of, latents_of, scenes_of
from .fit import fit, plateau
from .rendering import TRAIN_SEED, loss_weights, sampling_weights

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

UNET_STEPS = 15_000
UNET_CONFIG = {
    "sample_size": 16,
    "block_out_channels": (96, 160, 224),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,  # number of heads, despite its name (diffusers' issue 2011)
}
SCHEDULER_CONFIG = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


def build_unet(folder: Path) -> None:
    """The U-Net, conditioned as in SD 1.x: on all 32 last hidden states, padded, without a mask.

    v-prediction on a cosine schedule, one prompt in ten empty; keeps an average of the weights.
    """
    from diffusers import (
        AutoencoderTiny,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextModel, CLIPTokenizer

    sd = folder / "sd"
    tokenizer = CLIPTokenizer.from_pretrained(sd / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", use_safetensors=True)
    scenes = [sample(TRAIN_SEED + i) for i in range(SCENES)]
    training = UNetScenes(
        latents_of(folder, scenes_of(folder)), captions_of(folder),
        normalized(torch.from_numpy(loss_weights(scenes))),
        torch.from_numpy(sampling_weights(scenes)),
    )  # fmt: skip
    empty = torch.tensor(tokenizer([""], padding="max_length")["input_ids"])
    scheduler = DDIMScheduler(**SCHEDULER_CONFIG)
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**UNET_CONFIG)
    unet.set_attn_processor(AttnProcessor())  # a third faster on a CPU than the fused backward
    loss = VelocityLoss(unet, encoder, training, empty, scheduler.alphas_cumprod)
    fit(
        "unet", unet, loss, steps=UNET_STEPS, learning_rate=8e-4, average=0.999, schedule=plateau,
        shards=2, folder=folder,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(sd / "vae", use_safetensors=True),
        text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(sd)  # fmt: skip


def normalized(weights: Tensor) -> Tensor:
    """Loss weights with a mean of 1, half precision, same shape."""
    return (weights.float() / weights.float().mean()).half()


@dataclass(frozen=True)
class UNetScenes:
    """What the U-Net is trained on; all on one device."""

    latents: Tensor
    """Scaled latents, (scenes, 4, 16, 16)."""
    ids: Tensor
    """Token ids of the captions, (scenes, captions, tokens)."""
    weights: Tensor
    """Weights of the latent cells in the loss, (scenes, 1, 16, 16)."""
    frequencies: Tensor
    """How often each scene is sampled, relative to the others, (scenes,)."""


@dataclass(frozen=True)
class VelocityLoss:
    """Weighted squared error of the predicted velocity on a random batch."""

    unet: UNet2DConditionModel
    encoder: CLIPTextModel
    scenes: UNetScenes
    empty: Tensor
    """Token ids of the empty prompt, (1, tokens)."""
    alphas: Tensor
    """Cumulative products of the noise schedule, (timesteps,)."""
    batch: int = 32

    def __call__(self, generator: torch.Generator) -> Tensor:
        n, device, scenes = self.batch, generator.device, self.scenes
        rows = torch.multinomial(scenes.frequencies, n, replacement=True, generator=generator)
        caption = torch.randint(scenes.ids.shape[1], (n,), generator=generator, device=device)
        blank = torch.rand(n, generator=generator, device=device) < 0.1
        tokens = torch.where(blank[:, None], self.empty, scenes.ids[rows, caption].long())
        # One timestep from each of n strata: less variance than n independent ones. More of them
        # at high noise, which decides where each thing goes.
        share = (
            torch.arange(n, device=device) + torch.rand(n, generator=generator, device=device)
        ) / n
        # Rounding can take the last share to 1.
        times = (share ** (2 / 3) * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[times][:, None, None, None]
        clean = scenes.latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type == "cuda"):
            with torch.no_grad():
                hidden_states = self.encoder(tokens).last_hidden_state
            out = self.unet(noisy, times, hidden_states).sample
        error: Tensor = out.float() - target
        return (scenes.weights[rows] * error.square()).mean()
