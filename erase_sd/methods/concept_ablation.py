"""Ablating concepts (Kumari et al., ICCV 2023, arXiv 2303.13516): the concept becomes its anchor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..models.denoiser import Prompts, rows_of
from .base import Batch, Method, Need, Student, Task, Unlearned, fitted, minimum
from .concept_prompts import concept_prompts, denoiser_of
from .cross_attention import is_key_or_value


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(Method):
    """Kumari et al. (ICCV 2023, arXiv 2303.13516): prompts of the concept as prompts of an anchor, Eq. 4.

    The original generates images of anchor prompts; on them, the student's prediction under the
    prompt with the concept is trained to its own under the anchor prompt, and the usual denoising
    loss under the anchor prompt keeps the anchor. Differs: the anchor prompts are the concept-removed
    captions, where the paper asks a language model for prompts of a broader concept; images stay
    latents and are not augmented, and there are fewer of them.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    unlearns: ClassVar[Unlearned] = "unet"
    learning_rate: ClassVar[float] = 3e-3
    steps: ClassVar[int] = 60
    trained_parameters: ClassVar[str] = "keys and values of the U-Net's cross-attention"
    prompts: tuple[str, ...] = ("{}", "a photo of {}")
    """Prompts, separated by |, with {} for the concept's name or the anchor (ours)."""
    toward: str = ""
    """Anchor of these prompts: a word, such as a broader concept (as in the paper), or nothing for the
    empty prompt (ours)."""
    images: int = minimum(1, 48)
    """Anchor images that the original generates (1,000 in the paper)."""
    rows: int = minimum(1, 12)
    """Images per step (4 in the paper)."""
    anchor_weight: float = 1.0
    """Weight of the denoising loss under the anchor prompts (1 in the paper)."""
    sampling_steps: int = minimum(2, 10)
    """Denoising steps of the anchor images (200 in the paper)."""
    sampling_guidance: float = 3.0
    """Classifier-free guidance of the anchor images (6 in the paper)."""
    asked: Prompts = fitted()
    """What the U-Net reads of the prompts with the concept."""
    anchor: Prompts = fitted()
    """What it reads of the anchor prompts."""
    latents: Tensor = fitted()
    """Anchor images as latents, (images, channels, height, width)."""

    def prepare(self, task: Task) -> Self:
        """Generates the anchor images."""
        original, random = denoiser_of(task), torch.Generator().manual_seed(task.seed)
        prompts = concept_prompts(task, self.prompts, self.toward, self.images)
        chosen = torch.randperm(len(prompts.asked), generator=random)[: self.images]
        anchor = original.encode(prompts.instead[chosen])
        latents = [
            original.sample(
                rows_of(anchor, some), random,
                steps=self.sampling_steps, guidance=self.sampling_guidance,
            ).latents
            for some in torch.arange(len(chosen)).split(self.rows)  # type: ignore[no-untyped-call]
        ]  # fmt: skip
        return dataclasses.replace(
            self,
            asked=original.encode(prompts.asked[chosen]),
            anchor=anchor,
            latents=torch.cat(latents),
        )

    def trains(self, name: str) -> bool:
        """Keys and values of the cross-attention."""
        return is_key_or_value(name)

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `ablate` and `anchor`."""
        denoiser, random = student.denoiser, batch.generator
        chosen = torch.randperm(len(self.latents), generator=random)[: self.rows]
        asked, anchor = rows_of(self.asked, chosen), rows_of(self.anchor, chosen)
        noisy, answer = denoiser.add_noise(self.latents[chosen.to(self.latents.device)], random)
        anchored = denoiser.predict(noisy, anchor)
        ablated = denoiser.predict(noisy, asked) - anchored.detach()
        return {
            "ablate": ablated.square().mean(),
            "anchor": self.anchor_weight * (anchored - answer).square().mean(),
        }
