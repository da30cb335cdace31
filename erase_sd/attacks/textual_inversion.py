"""Textual inversion: a new word, learnt from photographs through the erased encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Access, Attack, Probe, at_least, descend
from .embeddings import embedding_probe, random_words
from .target import Target
from .tokens import encode_rows, in_place_of_name, token_rows


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Attack):
    """Pham et al. 2023, arXiv 2308.01508: concept inversion of an erased model.

    Differs: the new word stands in the name's place in the photographs' own captions, not in "a photo
    of". The U-Net's loss on the photographs is minimized over the word's embeddings alone.
    """

    access: ClassVar[Access] = "white box"
    tokens: tuple[int, ...] = at_least(1, (1,))
    """Embeddings of the word, one row each (textual inversion: 1)."""
    images: int = at_least(1, 48)
    """Photographs to learn from (ours; textual inversion: 3 to 5)."""
    steps: int = at_least(1, 150)
    """Steps of Adam (ours; textual inversion: 5,000)."""
    batch: int = at_least(1, 8)
    """Photographs per step (ours)."""
    learning_rate: float = at_least(0, 0.01)
    """Learning rate, constant (ours; textual inversion: 5e-3)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe for each number of tokens."""
        return [self._probe(target, count) for count in self.tokens]

    def _probe(self, target: Target, count: int) -> Probe:
        captions = target.training[: self.images]
        latents = target.denoiser.latents([caption.image for caption in captions])
        vectors, generator = random_words(target, count), target.generator()
        optimizer = torch.optim.Adam(list(vectors.values()), lr=self.learning_rate)
        for _ in range(self.steps):
            chosen = torch.randperm(len(captions), generator=generator)[: self.batch]
            parts = in_place_of_name([captions[i] for i in chosen], [0] * count)
            embeds = encode_rows(target, target.erased, token_rows(target, parts), vectors)
            own = latents[chosen.to(latents.device)]
            descend(optimizer, target.denoising_loss(own, embeds, generator))
        return embedding_probe(target, f"{count} token{'s' * (count > 1)}", vectors)
