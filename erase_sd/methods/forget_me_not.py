"""Forget-Me-Not (Zhang et al., 2023, arXiv 2303.17591): attention to the concept's name is re-steered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..models.denoiser import Prompts, rows_of
from .base import Batch, Method, Need, Student, Task, Unlearned, fitted, minimum
from .concept_prompts import concept_images, denoiser_of, mentioning
from .cross_attention import reads_text


@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(Method):
    """Zhang et al. (2023, arXiv 2303.17591): no pixel attends to the concept's name.

    On a few images of the concept, the squares of the cross-attention's probabilities at the name's
    tokens are minimized. Differs: captions of the images take the place of a prompt and of the
    learned word that the paper may use; the cross-attention alone is trained, as the authors' code
    offers.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    unlearns: ClassVar[Unlearned] = "unet"
    learning_rate: ClassVar[float] = 1e-4
    steps: ClassVar[int] = 60
    trained_parameters: ClassVar[str] = "the U-Net's cross-attention"
    images: int = minimum(1, 16)
    """Images of the concept (8 in the authors' code)."""
    rows: int = minimum(1, 8)
    """Images per step (1 in the authors' code)."""
    after: bool = False
    """Whether the tokens behind the name count too, which a causal text encoder lets know of it (ours)."""
    prompts: Prompts = fitted()
    """What the U-Net reads of the images' captions."""
    named: Tensor = fitted()
    """1 at the tokens of the concept's name, else 0, (captions, tokens)."""
    latents: Tensor = fitted()
    """The captions' images, (captions, channels, height, width)."""

    def prepare(self, task: Task) -> Self:
        """Encodes the images, and finds the names in their captions."""
        original, forget = denoiser_of(task), task.forget
        paths = set(concept_images(task, self.images))
        rows = [
            row for row in mentioning(forget, len(forget)).tolist() if forget.paths[row] in paths
        ]
        ids, removed = forget.ids[rows], forget.concept_removed_ids[rows]
        position, end = torch.arange(ids.shape[1])[None], forget.mention_end[rows][:, None]
        first = (ids != removed).int().argmax(1, keepdim=True)
        last = task.clip.ends(ids)[:, None] - 1 if self.after else end
        return dataclasses.replace(
            self,
            prompts=original.encode(ids),
            named=((position >= torch.minimum(first, end)) & (position <= last)).float(),
            latents=original.latents([forget.paths[row] for row in rows]),
        )

    def trains(self, name: str) -> bool:
        """The cross-attention."""
        return reads_text(name)

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `attention`: squared probabilities at the name, summed over tokens and layers."""
        denoiser, random = student.denoiser, batch.generator
        chosen = torch.randperm(len(self.latents), generator=random)[: self.rows]
        noisy, _ = denoiser.add_noise(self.latents[chosen.to(self.latents.device)], random)
        total = torch.zeros((), device=denoiser.device)
        for probabilities in denoiser.attention(noisy, rows_of(self.prompts, chosen)):
            named = self.named[chosen].to(probabilities)[:, None, None, :]
            total = total + (probabilities.square() * named).sum(-1).mean()
        return {"attention": total}
