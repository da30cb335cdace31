"""Images per second of Stable Diffusion 1.5 with random weights, and the share of the card they use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..models.compiled import compile_blocks, compile_denoiser
from ..models.pipeline import embed
from ..models.sampling import generate_batch
from .critical_path import loop_seconds
from .figures import Figures, timed
from .full_size import random_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

PROMPT = "an apple on a table"
BATCH = 16
"""Images of a batch where variants are compared; enough to fill an H100."""
KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
"""PyTorch's fused attention on CUDA."""


@dataclass
class ImageSpeed:
    """The sections of a benchmark that generate images, at 512 px unless the models are tiny."""

    figures: Figures

    def run(self) -> None:
        """All sections, the most important first; each needs about as many seconds on an H100."""
        section = self.figures.section
        section("images", lambda: self.images((1, 8, 16, 32)), needs=45)
        section("images, blocks compiled", lambda: self.images((BATCH,), "blocks"), needs=40)
        section("PNG and detection", self.critical_path, needs=30)
        section("images, U-Net compiled", lambda: self.images((BATCH,), "U-Net"), needs=75)
        section("images, fp16", lambda: self.images((BATCH,), dtype=torch.float16), needs=14)
        section("variants of denoising", self.variants, needs=45)
        section("variants of decoding", self.decoding, needs=25)

    def images(
        self, batches: Sequence[int], compiled: str = "", dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Images per second by batch size; `compiled` is "U-Net" for the whole of it, or "blocks" as in
        `generate`."""
        pipe = random_pipeline(dtype, self.figures.small)
        unet, vae = flops_of(pipe)
        if compiled == "blocks":
            compile_denoiser(pipe)
        elif compiled:
            pipe.unet.compile(fullgraph=True, dynamic=False)
        for batch in (1,) if self.figures.brief else batches:
            about = {"batch": batch, "dtype": "bf16" if dtype == torch.bfloat16 else "fp16"}
            about |= {"compiled": compiled} if compiled else {}
            self._of_batch(pipe, batch, unet, vae, about)
        if compiled:
            torch._dynamo.reset()  # frees what was compiled

    def _of_batch(
        self, pipe: DiffusionPipeline, batch: int, unet: float, vae: float, about: dict[str, Any]
    ) -> None:
        """The figures of one batch size; `unet` and `vae` are the operations for one row and one image."""
        add, share, brief = self.figures.add, self.figures.share, self.figures.brief
        first = timed(lambda: sample_images(pipe, batch, 2))  # compiles, and chooses kernels
        add("first images", first, "s", **about)
        seconds = timed(lambda: denoise(pipe, batch, 2 if brief else 10)) / (2 if brief else 10)
        add("a step of denoising", seconds, "s", **about, **share(2 * batch * unet / seconds))
        for steps in (1, 2) if brief else (20, 50):
            seconds = timed(functools.partial(sample_images, pipe, batch, steps))
            used = share(batch * (2 * steps * unet + vae) / seconds)
            add("images", batch / seconds, "images/s", steps=steps, **about, **used)

    def critical_path(self) -> None:
        """Seconds an image of the VAE, PNG and detection, and of a loop that hides the last two or not."""
        pipe = random_pipeline(torch.bfloat16, self.figures.small)
        batch, steps, batches = (1, 1, 2) if self.figures.brief else (8, 20, 4)
        size = pipe.unet.config.sample_size
        latents = torch.randn(batch, 4, size, size).to(pipe.device, pipe.vae.dtype)
        with torch.inference_mode():
            vae = timed(lambda: pipe.vae.decode(latents), 2, warm=1) / batch
        self.figures.add("VAE", vae, "s an image")
        for what, seconds, about in loop_seconds(
            lambda: sample_images(pipe, batch, steps), batches
        ):
            self.figures.add(what, seconds, "s an image", **about)

    def variants(self) -> None:
        """A step of denoising with other kernels and in another memory layout than `generate` uses."""
        from torch.backends import cudnn
        from torch.nn.attention import SDPBackend, sdpa_kernel

        pipe = random_pipeline(torch.bfloat16, self.figures.small)
        batch, steps = (1, 2) if self.figures.brief else (BATCH, 10)
        unet, _ = flops_of(pipe)
        ways: dict[str, AbstractContextManager[Any]] = {"as in generate": nullcontext()}
        if self.figures.on_card:
            ways["cuDNN's fastest convolutions"] = cudnn.flags(enabled=True, benchmark=True)
            ways |= {kernel: sdpa_kernel(getattr(SDPBackend, kernel)) for kernel in KERNELS}
        ways["contiguous layout"] = ways["contiguous layout, blocks compiled"] = nullcontext()
        for name, way in ways.items():
            if name.startswith("contiguous"):
                pipe.unet.to(memory_format=torch.contiguous_format)
            if name.endswith("compiled"):
                compile_denoiser(pipe)
            try:
                with way:
                    seconds = timed(lambda: denoise(pipe, batch, steps), warm=1) / steps
            except RuntimeError as error:  # a kernel may not support every shape
                self.figures.fail(f"a step of denoising, {name}", error, "unsupported")
                continue
            used = self.figures.share(2 * batch * unet / seconds)
            self.figures.add(f"a step of denoising, {name}", seconds, "s", batch=batch, **used)

    def decoding(self) -> None:
        """Decoding by the VAE: image by image as in `generate`, whole batches, and with compiled blocks."""
        pipe = random_pipeline(torch.bfloat16, self.figures.small)
        batch = 1 if self.figures.brief else 8
        _, flops = flops_of(pipe)
        size = pipe.unet.config.sample_size
        latents = torch.randn(batch, 4, size, size).to(pipe.device, pipe.vae.dtype)
        for name in ("as in generate", "a batch at once", "a batch at once, blocks compiled"):
            if "at once" in name:
                pipe.vae.disable_slicing()
            if name.endswith("compiled"):
                compile_blocks(pipe.vae)
            with torch.inference_mode():
                seconds = timed(lambda: pipe.vae.decode(latents), 3, warm=1) / batch
            used = self.figures.share(flops / seconds)
            self.figures.add(f"decoding, {name}", seconds, "s an image", batch=batch, **used)


def sample_images(pipe: DiffusionPipeline, batch: int, steps: int) -> list[Image]:
    """A batch of images, as the generate stage generates them."""
    return generate_batch(pipe, [PROMPT] * batch, range(batch), steps, 7.5)


@torch.inference_mode()
def denoise(pipe: DiffusionPipeline, batch: int, steps: int) -> None:
    """The loop of the U-Net and the sampler alone.

    The pipeline calls the U-Net here: called in another way, a compiled one would be compiled again.
    """
    embeds = embed(pipe, [PROMPT] * batch)["prompt_embeds"]
    pipe(
        prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=steps,
        guidance_scale=7.5, output_type="latent",
    )  # fmt: skip


def flops_of(pipe: DiffusionPipeline) -> tuple[float, float]:
    """Floating-point operations of the U-Net for one row of latents, and of the VAE for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    size, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    like = {"device": pipe.device, "dtype": pipe.unet.dtype}
    latents, embeds = torch.randn(1, 4, size, size, **like), torch.randn(1, 77, width, **like)
    counts = []
    for model, inputs in ((pipe.unet, (latents, 1, embeds)), (pipe.vae.decode, (latents,))):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(*inputs)
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]
