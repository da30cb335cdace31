"""Forget-Me-Not (Zhang et al., 2023, arXiv 2303.17591): attention to the concept's name is minimized."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ..models.denoiser import Prompts, rows_of
from .base import Batch, Method, Need, Student, Task, Unlearned, fitted, minimum
from .concept_prompts import concept_images, denoiser_of, mentioning
from .cross_attention import reads_text

Tokens = Literal["name", "name-end", "onward"]


@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(Method):
    """Zhang et al. (2023, arXiv 2303.17591): no pixel attends to the concept's name.

    On a few images of the concept, the squares of the cross-attention's probabilities at the name's
    and the end-of-text tokens are minimized. Differs: the images' captions replace the prompt and
    the optional learned word of the paper; the loss is the mean square, not the norm.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    unlearns: ClassVar[Unlearned] = "unet"
    learning_rate: ClassVar[float] = 1e-4
    steps: ClassVar[int] = 60
    trained_parameters: ClassVar[str] = "the U-Net, or its cross-attention"
    images: int = minimum(1, 16)
    """Images of the concept (10 in the authors' example)."""
    rows: int = minimum(1, 8)
    """Images per step (1 in the authors' code)."""
    tokens: Tokens = "name-end"
    """Tokens to which attention is minimized: those of the name; also the end of text, and with it SD 1's
    padding (as in the authors' code); or all from the name on (ours: in a causal encoder they read it)."""
    trained: Literal["all", "cross-attention"] = "all"
    """Part of the U-Net that is trained (all in the authors' configuration)."""
    prompts: Prompts = fitted()
    """What the U-Net reads of the images' captions."""
    steered: Tensor = fitted()
    """1 at the tokens whose attention is minimized, else 0, (captions, tokens)."""
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
        last = forget.mention_end[rows]
        first = torch.minimum((ids != removed).int().argmax(1), last)
        return dataclasses.replace(
            self,
            prompts=original.encode(ids),
            steered=steered(self.tokens, ids, first, last, task.clip.ends(ids)),
            latents=original.latents([forget.paths[row] for row in rows]),
        )

    def trains(self, name: str) -> bool:
        """All parameters, or those of the cross-attention."""
        return self.trained == "all" or reads_text(name)

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `attention`: squared probabilities at the name, summed over tokens and layers."""
        denoiser, random = student.denoiser, batch.generator
        chosen = torch.randperm(len(self.latents), generator=random)[: self.rows]
        noisy, _ = denoiser.add_noise(self.latents[chosen.to(self.latents.device)], random)
        total = torch.zeros((), device=denoiser.device)
        for probabilities in denoiser.attention(noisy, rows_of(self.prompts, chosen)):
            steered = self.steered[chosen].to(probabilities)[:, None, None, :]
            total = total + (probabilities.square() * steered).sum(-1).mean()
        return {"attention": total}


def steered(tokens: Tokens, ids: Tensor, first: Tensor, last: Tensor, end: Tensor) -> Tensor:
    """1 where attention is minimized, else 0, as `ids` (n, tokens).

    `first` and `last` are the positions of the name's outer tokens, `end` that of the end of text, (n,).
    """
    position = torch.arange(ids.shape[1])[None]
    chosen = (position >= first[:, None]) & (position <= last[:, None])
    if tokens == "name-end":
        chosen |= ids == ids.gather(1, end[:, None])
    if tokens == "onward":
        chosen |= position > last[:, None]
    return chosen.float()
