"""Images from an open pipeline, a batch at a time: from prompts, or from what its denoiser reads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from .pipeline import embed, image_size
from .t5 import denoising_model, flux_pixels

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image


def default_batch(pipe: DiffusionPipeline) -> int:
    """Images per batch: 25 up to 256 px, 8 at 512 px, 2 at 1024 px."""
    return max(1, min(25, 2**21 // image_size(pipe) ** 2))


def generate_batch(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> list[Image]:
    """One batch of images, each from the noise of its own seed, which is sampled on the CPU."""
    with torch.inference_mode():
        embeds, empty = embed(pipe, prompts), embed(pipe, [""])
    return generate_embedded(pipe, embeds, empty, seeds, steps, guidance)


@torch.inference_mode()
def generate_embedded(
    pipe: DiffusionPipeline,
    embeds: Mapping[str, Tensor],
    empty: Mapping[str, Tensor],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> list[Image]:
    """`generate_batch` from what the U-Net reads of the prompts and of the empty prompt.

    FLUX.1 reads no empty prompt: its guidance is an input of its transformer. Raises ModelError for
    pixels that are not finite, which would become black images.
    """
    if type(pipe).__name__ == "FluxPipeline":
        pixels = flux_pixels(pipe, embeds, seeds, steps, guidance)
    else:
        pixels = _pixels(pipe, embeds, empty, seeds, steps, guidance)
    if not pixels.isfinite().all():
        raise ModelError(
            f"images are not finite in {str(denoising_model(pipe).dtype)[6:]}; fp32 has the widest "
            "range",
            field="dtype",
        )  # fmt: skip
    return _images(pixels)


def _images(pixels: Tensor) -> list[Image]:
    """RGB images of pixels (n, 3, height, width), 0-1.

    The conversion to bytes rounds as diffusers does, and runs on the device, which copies bytes faster.
    """
    import PIL.Image

    levels = (255 * pixels.float()).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [PIL.Image.fromarray(image) for image in levels.cpu().numpy()]


def _pixels(
    pipe: DiffusionPipeline,
    embeds: Mapping[str, Tensor],
    empty: Mapping[str, Tensor],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    denoiser = denoising_model(pipe)
    size = denoiser.config.sample_size
    shape = (1, denoiser.config.in_channels, size, size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    if getattr(pipe.config, "force_zeros_for_empty_prompt", False):  # SDXL
        empty = {name: torch.zeros_like(embedding) for name, embedding in empty.items()}
    # SDXL decodes in fp32; had memory run out, it would not have cast its VAE back to fp16.
    pipe.vae.to(dtype=denoiser.dtype)
    out = pipe(
        **embeds,
        **{f"negative_{name}": t.expand_as(embeds[name]) for name, t in empty.items()},
        latents=torch.cat(noise).to(pipe.device, denoiser.dtype),
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="pt",
    )
    pixels: Tensor = out.images
    return pixels


def seconds_per_image(pipe: DiffusionPipeline, steps: int, guidance: float) -> float:
    """About how long an image takes, seconds, by a few of its denoising steps."""
    seconds = []
    for short in (1, 3):
        began = time.monotonic()
        generate_batch(pipe, [""], [0], short, guidance)
        seconds.append(time.monotonic() - began)
    first, third = seconds
    step = max(0.0, third - first) / 2
    return max(0.0, first - step) + steps * step
