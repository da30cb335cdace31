"""A pipeline's U-Net as a function: its prediction, its loss on images, latents on the way to one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import runtime
from ..data.images import ImageSource, open_image
from ..errors import ModelError
from ..sharing.rows import by_rows
from .pipeline import embed, embed_ids, encoders_of, image_size, open_pipeline, tokenizer_of
from .unet import recompute_if_large, watched

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Prompts = Mapping[str, Tensor]
"""What the U-Net reads of n prompts, named as the pipeline's arguments."""
ENCODE_BATCH = 64
"""Prompts encoded at once."""


@dataclass(frozen=True)
class Noisy:
    """Latents between noise and image."""

    latents: Tensor
    """(n, channels, height, width)."""
    times: Tensor
    """Timesteps, (n,)."""

    def rows(self, chosen: slice | Tensor) -> Noisy:
        """Some of the latents."""
        return Noisy(self.latents[chosen], self.times[chosen])


@dataclass(frozen=True)
class Denoiser:
    """The U-Net of a pipeline, with the pipeline's text encoders, VAE and noise schedule."""

    pipe: DiffusionPipeline
    unet: Any
    """The pipeline's own, or a copy that is unlearned."""
    precision: torch.dtype | None = None
    """Precision of the passes through the U-Net; None is that of its weights."""

    @property
    def device(self) -> torch.device:
        """Device of the U-Net."""
        device: torch.device = self.unet.device
        return device

    @property
    def alphas(self) -> Tensor:
        """The schedule's cumulative product of alphas, by timestep."""
        alphas: Tensor = self.pipe.scheduler.alphas_cumprod
        return alphas

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    def with_copy(self) -> Denoiser:
        """The same pipeline with a copy of the U-Net."""
        return dataclasses.replace(self, unet=copy.deepcopy(self.unet))

    def encode(self, ids: Tensor) -> dict[str, Tensor]:
        """What the U-Net reads of token ids (n, tokens), which the first tokenizer has padded."""
        is_end = ids == tokenizer_of(self.pipe, "text_encoder").eos_token_id
        after_end = is_end.cumsum(1) > is_end.int()
        by_encoder = {
            name: ids.masked_fill(after_end, tokenizer_of(self.pipe, name).pad_token_id)
            for name in encoders_of(self.pipe)
        }
        batches = []
        for start in range(0, len(ids), ENCODE_BATCH):
            some = {name: rows[start : start + ENCODE_BATCH] for name, rows in by_encoder.items()}
            with torch.no_grad():
                batches.append(embed_ids(self.pipe, encoders_of(self.pipe), some))
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def empty(self) -> dict[str, Tensor]:
        """What the U-Net reads of an empty prompt, one row; zeros with SDXL."""
        with torch.no_grad():
            empty = embed(self.pipe, [""])
        zeros = getattr(self.pipe.config, "force_zeros_for_empty_prompt", False)
        return {name: torch.zeros_like(t) if zeros else t for name, t in empty.items()}

    def latents(self, paths: Sequence[ImageSource]) -> Tensor:
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

    def add_noise(self, latents: Tensor, generator: torch.Generator) -> tuple[Noisy, Tensor]:
        """Latents (n, channels, h, w) at timesteps spread evenly, one at random in each of n strata, and
        what the U-Net should predict."""
        n = len(latents)
        shares = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        times = (shares * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha = self.alphas[times].to(latents)[:, None, None, None]
        target = noise
        if self.pipe.scheduler.config.prediction_type == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return Noisy(noisy, times.to(latents.device)), target

    def predict(self, noisy: Noisy, prompts: Prompts) -> Tensor:
        """The U-Net's prediction (noise, or velocity) under the prompts, as `noisy.latents`; processes in
        step share the rows."""
        return _by_rows(lambda *rows: (self._pass(*rows),), noisy, prompts)[0]

    def _pass(self, noisy: Noisy, prompts: Prompts) -> Tensor:
        extra: dict[str, Any] = {}
        dtype = self.unet.dtype
        if "pooled_prompt_embeds" in prompts:  # SDXL also reads the sizes of the image
            size = image_size(self.pipe)
            sizes = torch.tensor([[size, size, 0, 0, size, size]] * len(noisy.times))
            pooled = prompts["pooled_prompt_embeds"].to(self.device, dtype)
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.to(pooled)}}
        states = prompts["prompt_embeds"].to(self.device, dtype)
        latents, times = noisy.latents.to(self.device, dtype), noisy.times.to(self.device)
        lower = self.precision not in (None, torch.float32)
        with torch.autocast(self.device.type, self.precision if lower else None, enabled=lower):
            predicted: Tensor = self.unet(latents, times, states, **extra).sample
        return predicted.float()

    def loss(self, latents: Tensor, hidden_states: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the U-Net's prediction at random timesteps, (n,).

        `latents` are (n, channels, h, w), `hidden_states` (n, tokens, width).
        """
        noisy, target = self.add_noise(latents, generator)
        predicted = self.predict(noisy, {"prompt_embeds": hidden_states})
        return (predicted - target).float().square().flatten(1).mean(1)

    def attention(self, noisy: Noisy, prompts: Prompts) -> list[Tensor]:
        """Each cross-attention's probabilities in one pass, (n, heads, pixels, tokens)."""
        probabilities: list[Tensor] = []

        def read(module: Any, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            query = module.head_to_batch_dim(module.to_q(inputs[0]))
            key = module.head_to_batch_dim(module.to_k(named["encoder_hidden_states"]))
            scores = module.get_attention_scores(query, key)
            probabilities.append(scores.unflatten(0, (len(inputs[0]), module.heads)).float())

        def of_rows(*rows: Any) -> tuple[Tensor, ...]:
            self._pass(*rows)
            return tuple(probabilities)

        with watched(self.unet, ".attn2", read):
            return [*_by_rows(of_rows, noisy, prompts)]

    @torch.no_grad()
    def sample(
        self,
        prompts: Prompts,
        generator: torch.Generator,
        *,
        steps: int,
        guidance: float,
        taken: int | None = None,
    ) -> Noisy:
        """Latents after `taken` of `steps` DDIM steps from noise, by default all of them.

        The timesteps are those of the next step; 0 after the last.
        """
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config, clip_sample=False)
        scheduler.set_timesteps(steps)
        count = len(next(iter(prompts.values())))
        latents = torch.randn((count, *self.latent_shape), generator=generator).to(self.device)
        empty = repeated(self.empty(), count)
        remaining = scheduler.timesteps.tolist()
        for _ in range(steps if taken is None else taken):
            time = remaining.pop(0)
            noisy = Noisy(latents, torch.full((count,), time, device=self.device))
            without = self.predict(noisy, empty)
            predicted = without + guidance * (self.predict(noisy, prompts) - without)
            latents = scheduler.step(predicted, time, latents).prev_sample
        return Noisy(latents, torch.full((count,), remaining[0] if remaining else 0))


def _by_rows(
    work: Callable[[Noisy, Prompts], tuple[Tensor, ...]], noisy: Noisy, prompts: Prompts
) -> tuple[Tensor, ...]:
    names = [name for name in ("prompt_embeds", "pooled_prompt_embeds") if name in prompts]

    def of_rows(latents: Tensor, times: Tensor, *own: Tensor) -> tuple[Tensor, ...]:
        return work(Noisy(latents, times), dict(zip(names, own, strict=True)))

    return by_rows(of_rows, noisy.latents, noisy.times, *(prompts[name] for name in names))


def repeated(prompts: Prompts, count: int) -> dict[str, Tensor]:
    """One prompt's encoding as `count` rows."""
    return {name: t[:1].expand(count, *t.shape[1:]) for name, t in prompts.items()}


def rows_of(prompts: Prompts, chosen: slice | Tensor) -> dict[str, Tensor]:
    """The encodings of some of the prompts."""
    return {
        name: t[chosen if isinstance(chosen, slice) else chosen.to(t.device)]
        for name, t in prompts.items()
    }


def open_denoiser(
    folder: Path, dtype: runtime.Precision = "auto", precision: torch.dtype | None = None
) -> Denoiser:
    """The denoiser of a Stable Diffusion folder; all of it is frozen.

    `dtype` is that of its weights, `precision` that of the passes through its U-Net. Raises ModelError
    if it has a transformer instead.
    """
    pipe = open_pipeline(folder, dtype)
    if not hasattr(pipe, "unet"):
        raise ModelError("has a transformer; needs a U-Net", field="model", value=folder)
    for module in (pipe.unet, pipe.vae, *encoders_of(pipe).values()):
        module.requires_grad_(False)
    recompute_if_large(pipe.unet)
    return Denoiser(pipe, pipe.unet, precision)
