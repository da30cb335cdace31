"""What a preset takes on this machine: unlearning, closed form, images, memory, share of the card."""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import runtime
from ..data.concept import Concept
from ..data.images import png_of
from ..methods.base import Task
from ..methods.projection import Projection
from ..models.clip import Clip
from ..models.pipeline import compile_unet, embed, image_size
from ..models.sampling import generate_embedded
from ..unlearning.checkpoint import Checkpoint
from ..unlearning.session import Session
from ..unlearning.settings import UnlearnSettings
from ..unlearning.student import ClipStudent, original_of
from ..unlearning.trainer import Trainer
from .full_size import random_clips, random_pairs, random_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CAPTIONS = 145_000
"""Captions of an epoch: those of Flickr30K's training images."""
SDPA = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


@dataclass
class Bench:
    """Times one preset; a section that fails or has no time left says so in its rows."""

    preset: str
    small: bool
    seconds: float
    """Time for all of it."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def on_card(self) -> bool:
        """Whether a GPU is timed; on a CPU, a small part is, and the rest computed from it."""
        return runtime.device().type == "cuda"

    @property
    def part(self) -> bool:
        return self.small or not self.on_card

    def add(self, measure: str, value: float, unit: str, **about: Any) -> None:
        """Adds a figure, and prints it at once."""
        self.rows.append({"measure": measure, "value": value, "unit": unit, **about})
        print(measure, f"{value:.4g} {unit}", *(f"{k} {v}" for k, v in about.items()), flush=True)

    def section(self, name: str, work: Callable[[], None], share: float) -> None:
        """Runs a section unless the share (0-1) of the time by which it has to begin is over."""
        used = time.monotonic() - self.began
        if used > share * self.seconds:
            self.rows.append({"measure": name, "skipped": f"no time left after {used:.0f} s"})
            print(name, "skipped: no time left", flush=True)
            return
        began = time.monotonic()
        try:
            if self.on_card:
                torch.cuda.reset_peak_memory_stats()
            work()
        except Exception as error:  # a figure that cannot be had leaves the others
            why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.rows.append({"measure": name, "failed": why})
            print(name, "FAILED", why, flush=True)
        if self.on_card:
            self.add(f"{name}, peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
        runtime.free_memory()
        self.add(f"{name}, all of this section", time.monotonic() - began, "s")

    def run(self) -> None:
        """All sections, the most important first."""
        self.section("matrix product", self.matmul, 1)
        if self.preset == "sdxl":
            self.section("SDXL, both encoders", self.unlearn, 1)
            return
        self.section("unlearning", self.unlearn, 1)
        self.section("closed form", self.closed_form, 0.5)
        self.section("images, bf16", lambda: self.images(torch.bfloat16, False), 0.6)
        self.section("images, bf16, compiled", lambda: self.images(torch.bfloat16, True), 0.75)
        self.section("images, fp16", lambda: self.images(torch.float16, False), 0.85)
        self.section("attention kernels", self.attention, 0.9)

    def matmul(self) -> None:
        """The card's own rate for a bf16 matrix product, 8192 square."""
        n = 8192 if self.on_card else 512
        a, b = (torch.randn(n, n, device=runtime.device(), dtype=torch.bfloat16) for _ in range(2))
        seconds = timed(lambda: a @ b, 10)
        self.add("bf16 matrix product", 2 * n**3 / seconds / 1e12, "TFLOP/s", size=n)

    def unlearn(self) -> None:
        """Steps of the trainer on hidden-state losses, at the default and at a large batch."""
        for number, clip in enumerate(random_clips(self.preset, self.small)):
            sizes = [(2, 4)] if self.part else [(48, 96), (192, 384)][: 2 - number]
            for forget, retain in sizes:
                steps = 2 if self.part else 120 if forget == 48 else 16
                began = time.perf_counter()
                times = step_seconds(clip, forget, retain, steps)
                whole = time.perf_counter() - began
                about = {"encoder": number, "forget": forget, "retain": retain}
                step = statistics.median(times)
                self.add("a step of unlearning", step, "s", **about)
                self.add(
                    f"an epoch over {CAPTIONS:,} captions", CAPTIONS / retain * step, "s", **about
                )
                if steps == 120:
                    self.add("an erasure, 120 steps, validated and saved", whole, "s", **about)
            del clip

    def closed_form(self) -> None:
        """Seconds of the projection's solution for more and more concepts."""
        [clip] = random_clips("sd15", self.small)
        for concepts in (1, 10, 100)[: 1 if self.part and not self.small else 3]:
            captions = 16 if self.part else max(500, 20 * concepts)
            pairs = random_pairs(clip, captions, captions)
            names = tuple(f"concept {n}" for n in range(concepts))
            task = Task(clip, names, pairs.forget["train"], pairs.retain["train"], seed=0)
            method = Projection(captions=captions)
            began = time.perf_counter()
            method.solve(task)
            self.add("closed form", time.perf_counter() - began, "s", concepts=concepts,
                     captions=2 * captions)  # fmt: skip

    def images(self, dtype: torch.dtype, compiled: bool) -> None:
        """Images per second by batch size at 20 steps, at 50 for the largest; VAE and PNG apart."""
        pipe = random_pipeline(dtype, self.small)
        about = {"dtype": str(dtype)[6:], "compiled": compiled}
        flops = flops_of(pipe)
        if compiled:
            compile_unet(pipe)
        batches = [8, 16] if compiled or dtype == torch.float16 else [1, 4, 8, 16, 32]
        batches = [1] if self.part else batches
        for batch in batches:
            began = time.perf_counter()
            sample_images(pipe, batch, 1 if self.part else 2)  # warms up, and compiles
            self.add("first images", time.perf_counter() - began, "s", batch=batch, **about)
            for steps in (20, 50) if batch == 16 else (20,):
                taken = 1 if self.part else steps
                work = functools.partial(sample_images, pipe, batch, taken)
                seconds = timed(work, 1, warm=False)
                seconds *= steps / taken
                self.add("images", batch / seconds, "images/s", steps=steps, batch=batch, **about,
                         tflops=round(2 * steps * batch * flops / seconds / 1e12, 1))  # fmt: skip
        if not compiled and dtype == torch.bfloat16:
            self.decoding(pipe)

    def decoding(self, pipe: DiffusionPipeline) -> None:
        """Seconds an image of the VAE's decoder, and of PNG."""
        size = pipe.unet.config.sample_size
        latents = torch.randn(8 if self.on_card else 1, 4, size, size).to(
            pipe.device, pipe.vae.dtype
        )
        with torch.inference_mode():
            seconds = timed(lambda: pipe.vae.decode(latents), 2) / len(latents)
        self.add("VAE", seconds, "s an image")
        [image] = sample_images(pipe, 1, 1)
        png = timed(lambda: png_of(image), 3)
        self.add("PNG", png, "s an image", pixels=image_size(pipe))

    def attention(self) -> None:
        """One step of 16 rows by each of PyTorch's attention kernels."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        pipe = random_pipeline(torch.bfloat16, self.small)
        for name in SDPA if self.on_card else ("MATH",):
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    sample_images(pipe, 1 if self.part else 8, 1)
                    step = timed(
                        lambda: sample_images(pipe, 1 if self.part else 8, 5), 1, warm=False
                    )
                self.add("attention", step, "s for 5 steps of a batch", kernel=name)
            except RuntimeError as error:
                self.rows.append(
                    {"measure": "attention", "kernel": name, "failed": str(error)[:200]}
                )


def timed(work: Callable[[], object], repeats: int, warm: bool = True) -> float:
    """Mean seconds of a call, the device's work included."""
    card = runtime.device().type == "cuda"
    wait = torch.cuda.synchronize if card else nullcontext
    if warm:
        work()
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - began) / repeats


def sample_images(pipe: DiffusionPipeline, batch: int, steps: int) -> list[Any]:
    """A batch of images, by the product's own way."""
    with torch.inference_mode():
        embeds, empty = embed(pipe, ["an apple on a table"] * batch), embed(pipe, [""])
    return list(generate_embedded(pipe, embeds, empty, range(batch), steps, 7.5))


def flops_of(pipe: DiffusionPipeline) -> float:
    """Floating-point operations of the U-Net for one row of latents."""
    from torch.utils.flop_counter import FlopCounterMode

    size, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    like = {"device": pipe.device, "dtype": pipe.unet.dtype}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        pipe.unet(torch.randn(1, 4, size, size, **like), 1, torch.randn(1, 77, width, **like))
    return float(counter.get_total_flops())


def step_seconds(clip: Clip, forget: int, retain: int, steps: int) -> list[float]:
    """Seconds of each step of an unlearning, of which the first fifth is left out."""
    settings = UnlearnSettings(
        concepts=(Concept("apple"),), steps=steps, forget_batch=forget, retain_batch=retain,
        retain_floor=0.0, min_steps=steps, learning_rate=1e-6,
    )  # fmt: skip
    method = settings.build()
    with tempfile.TemporaryDirectory() as name:
        session = Session(
            settings=settings,
            student=ClipStudent(clip, "text", runtime.dtype(settings.precision), method.needs),
            original=original_of(clip, "text"),
            pairs=random_pairs(clip, 2_000, CAPTIONS if clip.device.type == "cuda" else 2_000),
            checkpoint=Checkpoint(Path(name, "checkpoint.safetensors"), {}),
            log_path=Path(name, "train.jsonl"),
            denoiser=None,
        )
        ends: list[float] = []
        Trainer(method, session).train(lambda *_: ends.append(time.perf_counter()))  # type: ignore[arg-type]
    return [after - before for before, after in itertools.pairwise(ends)][steps // 5 :]
