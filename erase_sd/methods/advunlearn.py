"""AdvUnlearn (Zhang et al., NeurIPS 2024, arXiv 2405.15234): adversarial prompts against the encoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..models.clip import FreeEmbeddings
from ..models.denoiser import Denoiser, Noisy
from .base import Batch, Method, Need, Student, Task, fitted, minimum
from .concept_prompts import concept_images, concept_prompts, denoiser_of, spread


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Method):
    """Zhang et al. (NeurIPS 2024, arXiv 2405.15234): ESD in the text encoder, against a prefix, Eq. 4-6.

    In every step, free embeddings before the prompt are trained to bring the original's prediction
    under the concept back; then the text encoder is trained to ESD's negative guidance under the
    attacked prompt, and to the original's predictions under retain prompts. Differs: noisy images of
    the data take the place of latents that the student generates; the retain prompts are the data's
    captions; forget captions take part, against their concept-removed ones; fewer attack steps, all on
    the noisy images of the training step (the authors sample new ones), and no warm-up without an attack.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    learning_rate: ClassVar[float] = 1e-4
    steps: ClassVar[int] = 80
    trained_parameters: ClassVar[str] = "all layers of the text tower but its embeddings"
    negative_guidance: float = 1.0
    """Scale of the guidance away from the concept (1 in the paper)."""
    retain_weight: float = 1.0
    """Weight of the change under retain prompts (0.3 in the paper)."""
    prompts: tuple[str, ...] = ("{}", "a photo of {}")
    """Prompts, separated by |, with {} for the concept's name (ours)."""
    captions: int = minimum(0, 200)
    """Maximum number of forget captions to train on beside the prompts (ours; 0 in the paper)."""
    images: int = minimum(1, 64)
    """Images of each set (ours)."""
    rows: int = minimum(1, 6)
    """Attacked prompts per step, and as many retain prompts (1 and 5 in the paper)."""
    tokens: int = minimum(0, 1)
    """Free embeddings before the prompt (1 in the paper)."""
    attack_steps: int = minimum(0, 3)
    """Steps of the attack before every training step (30 in the paper)."""
    attack_size: float = 0.02
    """Root mean square of a step of the attack (ours: the spread of CLIP's token embeddings)."""
    original: Denoiser = fitted()
    """The original pipeline."""
    asked: Tensor = fitted()
    """Token ids of the prompts with the concept, (n, tokens)."""
    instead: Tensor = fitted()
    """Token ids of what they are guided to."""
    concept_latents: Tensor = fitted()
    """Images of the concept, (images, channels, height, width)."""
    retain_ids: Tensor = fitted()
    """Token ids of the retain prompts, (images, tokens)."""
    retain_latents: Tensor = fitted()
    """Their images."""
    words: Tensor = fitted()
    """Input embeddings of the vocabulary, (words, width)."""

    def prepare(self, task: Task) -> Self:
        """Encodes the images and tokenizes the prompts."""
        original = denoiser_of(task, one_encoder=True)
        prompts = concept_prompts(task, self.prompts, "", self.captions)
        rows = spread(torch.arange(len(task.retain)), self.images)
        return dataclasses.replace(
            self,
            original=original,
            asked=prompts.asked,
            instead=prompts.instead,
            concept_latents=original.latents(concept_images(task, self.images)),
            retain_ids=task.retain.ids[rows],
            retain_latents=original.latents([task.retain.paths[row] for row in rows.tolist()]),
            words=task.clip.model.text_model.get_input_embeddings().weight.detach().clone(),
        )

    def trains(self, name: str) -> bool:
        """The layers and the final norm."""
        return name.startswith("text_model.") and ".embeddings." not in name

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `erase` and `retain`."""
        random = batch.generator
        chosen = torch.randint(len(self.asked), (self.rows,), generator=random)
        ids = self.asked[chosen]
        noisy = self._noisy(self.concept_latents, None, random)
        concept, without = self._predicted(noisy, ids), self._predicted(noisy, self.instead[chosen])
        prefix = self._attacked(student, noisy, ids, concept, random)
        target = without - self.negative_guidance * (concept - without)
        erased = self._student(student, noisy, ids, prefix) - target
        kept = torch.randint(len(self.retain_ids), (self.rows,), generator=random)
        noisy = self._noisy(self.retain_latents, kept, random)
        before = self._predicted(noisy, self.retain_ids[kept])
        changed = self._student(student, noisy, self.retain_ids[kept], None) - before
        return {
            "erase": erased.square().mean(),
            "retain": self.retain_weight * changed.square().mean(),
        }

    def _noisy(self, latents: Tensor, rows: Tensor | None, random: torch.Generator) -> Noisy:
        if rows is None:
            rows = torch.randint(len(latents), (self.rows,), generator=random)
        return self.original.add_noise(latents[rows.to(latents.device)], random)[0]

    def _predicted(self, noisy: Noisy, ids: Tensor) -> Tensor:
        """The original's prediction under prompts."""
        with torch.no_grad():
            return self.original.predict(noisy, self.original.encode(ids))

    def _student(
        self, student: Student, noisy: Noisy, ids: Tensor, prefix: Tensor | None
    ) -> Tensor:
        """The U-Net's prediction under what the student says of the prompts, behind a prefix."""
        free = None
        if prefix is not None:
            ids, free = prefixed(ids, prefix)
        _, states = student.text(ids, free=free)
        return self.original.predict(noisy, {"prompt_embeds": states})

    def _attacked(
        self, student: Student, noisy: Noisy, ids: Tensor, concept: Tensor, random: torch.Generator
    ) -> Tensor | None:
        """Free embeddings, (rows, tokens, width), after the attack; None without any."""
        if not self.tokens:
            return None
        start = torch.randint(len(self.words), (len(ids), self.tokens), generator=random)
        prefix = self.words[start.to(self.words.device)]
        for _ in range(self.attack_steps):
            leaf = prefix.requires_grad_()
            error = (self._student(student, noisy, ids, leaf) - concept).square().mean((1, 2, 3))
            [gradient] = torch.autograd.grad(error.sum(), leaf)
            scale = gradient.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-20)
            prefix = (leaf - self.attack_size * gradient / scale).detach()
        return prefix


def prefixed(ids: Tensor, prefix: Tensor) -> tuple[Tensor, FreeEmbeddings]:
    """Token ids (n, tokens) with free embeddings (n, k, width) behind the start; the end is cut off."""
    count, length = prefix.shape[1], ids.shape[1]
    moved = torch.cat([ids[:, :1], ids[:, 1:2].repeat(1, count), ids[:, 1:]], 1)[:, :length]
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, 1 : 1 + count] = True
    values = prefix.new_zeros(*ids.shape, prefix.shape[2])
    values[:, 1 : 1 + count] = prefix
    return moved, FreeEmbeddings(mask.to(prefix.device), values)
