"""Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv 2303.07345): negative guidance."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prompts, rows_of
from .base import Batch, Method, Need, Student, Task, Unlearned, fitted, minimum
from .concept_prompts import concept_prompts, denoiser_of
from .cross_attention import reads_text


@dataclass(frozen=True, kw_only=True)
class ESD(Method):
    """Gandikota et al. (ICCV 2023, arXiv 2303.07345): the U-Net is guided away from the concept, Eq. 6.

    On latents that the student itself denoises under the concept, its prediction is trained to the
    original's without the concept, minus the guidance that the concept gives the original. Differs:
    the paper trains on the concept's name against the empty prompt; here on forget captions against
    their concept-removed ones too, which 0 switches off; fewer denoising steps and more latents a
    step; the timestep is that of the next denoising step, not a random one up to it.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    unlearns: ClassVar[Unlearned] = "unet"
    learning_rate: ClassVar[float] = 1e-3
    steps: ClassVar[int] = 60
    trained_parameters: ClassVar[str] = "the U-Net's cross-attention (x), or all but it (u)"
    variant: Literal["x", "u"] = "x"
    """x trains the cross-attention, u everything else (x for named concepts in the paper)."""
    negative_guidance: float = 1.0
    """Scale of the guidance away from the concept (1 in the paper)."""
    prompts: tuple[str, ...] = ("{}", "a photo of {}")
    """Prompts, separated by |, with {} for the concept's name (the name alone in the paper)."""
    captions: int = minimum(0, 200)
    """Maximum number of forget captions to train on beside the prompts (ours; 0 in the paper)."""
    rows: int = minimum(1, 6)
    """Latents per step (1 in the paper)."""
    sampling_steps: int = minimum(2, 10)
    """Denoising steps from noise to an image (50 in the paper)."""
    sampling_guidance: float = 3.0
    """Classifier-free guidance of the latents (3 in the paper)."""
    original: Denoiser = fitted()
    """The original pipeline."""
    asked: Prompts = fitted()
    """What the U-Net reads of the prompts with the concept."""
    instead: Prompts = fitted()
    """What it reads of them without."""

    def prepare(self, task: Task) -> Self:
        """Encodes the prompts."""
        original = denoiser_of(task)
        prompts = concept_prompts(task, self.prompts, "", self.captions)
        return dataclasses.replace(
            self,
            original=original,
            asked=original.encode(prompts.asked),
            instead=original.encode(prompts.instead),
        )

    def trains(self, name: str) -> bool:
        """The cross-attention, or everything else."""
        return reads_text(name) == (self.variant == "x")

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `erase`."""
        random, count = batch.generator, len(self.asked["prompt_embeds"])
        chosen = torch.randint(count, (self.rows,), generator=random)
        asked, instead = rows_of(self.asked, chosen), rows_of(self.instead, chosen)
        taken = int(torch.randint(self.sampling_steps, (1,), generator=random))
        noisy = student.denoiser.sample(
            asked, random,
            steps=self.sampling_steps, guidance=self.sampling_guidance, taken=taken,
        )  # fmt: skip
        with torch.no_grad():
            concept = self.original.predict(noisy, asked)
            without = self.original.predict(noisy, instead)
        target = without - self.negative_guidance * (concept - without)
        return {"erase": (student.denoiser.predict(noisy, asked) - target).square().mean()}
