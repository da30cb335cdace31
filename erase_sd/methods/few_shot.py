"""Few-shot unlearning (Fuchi and Takagi, BMVC 2024, arXiv 2405.07288): a few images, the loss upward."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from .base import Batch, Method, Need, Student, Task, fitted, minimum
from .concept_prompts import concept_images, denoiser_of
from .losses import fill


@dataclass(frozen=True, kw_only=True)
class FewShot(Method):
    """Fuchi and Takagi (BMVC 2024, arXiv 2405.07288): the text encoder fails on a few images, Eq. 4.

    The U-Net's denoising loss on images of the concept, under prompts that name it, is maximized; the
    U-Net is frozen, and nothing is retained. Differs: more images; the number of steps is ours.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    learning_rate: ClassVar[float] = 1e-4
    steps: ClassVar[int] = 60
    trained_parameters: ClassVar[str] = "the text tower's MLPs and its last attention"
    prompts: tuple[str, ...] = ("{}", "a photo of {}", "a picture of {}")
    """Prompts, separated by |, with {} for the concept's name (templates of textual inversion in the
    paper)."""
    images: int = minimum(1, 16)
    """Images of the concept (4 in the paper)."""
    rows: int = minimum(1, 8)
    """Images per step (4 in the paper)."""
    denoiser: Denoiser = fitted()
    """The original pipeline."""
    ids: Tensor = fitted()
    """Token ids of the prompts, (prompts, tokens)."""
    latents: Tensor = fitted()
    """The images, (images, channels, height, width)."""
    last: str = fitted("")
    """Beginning of the names of the last layer's attention."""

    def prepare(self, task: Task) -> Self:
        """Encodes the images and the prompts."""
        denoiser = denoiser_of(task, one_encoder=True)
        layers = max((tap.layer for tap in task.clip.taps), default=0)
        layers = layers or task.clip.model.config.text_config.num_hidden_layers
        texts = [fill(prompt, name) for name in task.concepts for prompt in self.prompts]
        return dataclasses.replace(
            self,
            denoiser=denoiser,
            ids=task.clip.tokens(texts),
            latents=denoiser.latents(concept_images(task, self.images)),
            last=f"text_model.encoder.layers.{layers - 1}.self_attn.",
        )

    def trains(self, name: str) -> bool:
        """All MLPs, and the attention of the last layer that the U-Net reads."""
        return ".mlp." in name or (self.last != "" and name.startswith(self.last))

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `forget`, which is negative."""
        random = batch.generator
        chosen = torch.randint(len(self.latents), (self.rows,), generator=random)
        prompt = torch.randint(len(self.ids), (self.rows,), generator=random)
        _, states = student.text(self.ids[prompt])
        latents = self.latents[chosen.to(self.latents.device)]
        return {"forget": -self.denoiser.loss(latents, states, random).mean()}
