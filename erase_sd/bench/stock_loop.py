"""A rival: diffusers as its documentation shows it, one prompt at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL.Image import Image


def stock_images(
    folder: Path, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
) -> tuple[list[Image], float]:
    """One image per prompt with the model's own scheduler in float32, and the seconds it took.

    Loading the pipeline is not counted.
    """
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    images = [
        pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return images, time.perf_counter() - began
