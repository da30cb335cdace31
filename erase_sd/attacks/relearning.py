"""Relearning: fine-tuning of the erased encoder on a few photographs, as a curve over steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import Access, Attack, Probe, at_least, descend
from .target import Target, copy_of
from .tokens import encode_rows, text_rows


@dataclass(frozen=True, kw_only=True)
class Relearning(Attack):
    """This project: whoever has the weights can teach the concept again; how fast?

    The erased encoder is fine-tuned on a few photographs with their captions, by the U-Net's loss.
    The same is done with a word that the model has never seen in the name's place. How much
    faster the name is learned shows what the weights still hold; the rest, any model learns from photographs.
    If the U-Net was erased, it stays as it is, and the text encoder in front of it is fine-tuned.
    """

    access: ClassVar[Access] = "white box"
    images: int = at_least(1, 16)
    """Photographs to learn from (ours)."""
    steps: tuple[int, ...] = at_least(1, (5, 10, 20, 40))
    """Steps of Adam after which images are generated, one row each (ours)."""
    batch: int = at_least(1, 8)
    """Photographs per step (ours)."""
    learning_rate: float = at_least(0, 3e-4)
    """Learning rate, constant (ours)."""
    new_word: str = "zorbel"
    """The word that the model has never seen (ours)."""
    shown: int = at_least(1, 24)
    """Images of each row (ours)."""

    def run(self, target: Target) -> list[Probe]:
        """Two probes for each number of steps: the name, and the new word."""
        return [*self._curve(target, None), *self._curve(target, self.new_word)]

    def _curve(self, target: Target, word: str | None) -> list[Probe]:
        captions = target.training[: self.images]
        texts = [c.text if word is None else c.with_phrase(word) for c in captions]
        latents = target.denoiser.latents([caption.image for caption in captions])
        student, generator = copy_of(target.erased), target.generator()
        weights = [p for encoder in student.values() for p in encoder.parameters()]
        for weight in weights:
            weight.requires_grad_()
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate)
        probes = []
        for step in range(1, max(self.steps) + 1):
            chosen = torch.randperm(len(texts), generator=generator)[: self.batch]
            rows = text_rows(target, [texts[i] for i in chosen])
            own, embeds = latents[chosen.to(latents.device)], encode_rows(target, student, rows)
            descend(optimizer, target.denoising_loss(own, embeds, generator))
            if step in self.steps:
                probes.append(self._probe(target, student, step, word))
        return probes

    def _probe(
        self, target: Target, student: Mapping[str, Any], step: int, word: str | None
    ) -> Probe:
        captions = target.captions
        texts = tuple(c.text if word is None else c.with_phrase(word) for c in captions)
        rows = text_rows(target, texts)
        with torch.no_grad():
            return Probe(
                name=f"{step} step{'s' * (step > 1)}{'' if word is None else ', new word'}",
                texts=texts,
                embeds=encode_rows(target, student, rows),
                empty=target.empty(student),
                images=min(self.shown, target.n),
                control=word is not None,
            )
