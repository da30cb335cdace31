"""Free embeddings in place of the name, fitted to the original's hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least, descend
from .target import Target
from .tokens import (
    counterparts,
    embedding_table,
    encode_rows,
    in_place_of_name,
    state_loss,
    token_rows,
    with_name,
)


@dataclass(frozen=True, kw_only=True)
class FittedEmbeddings(Attack):
    """This project: input embeddings for which the erased encoder returns the original's hidden states.

    No images and no U-Net are needed. The embeddings start as those of random words and take the name's
    place in training captions; the distance of all hidden states to the original's is minimized. If only
    the U-Net was erased, the text encoder is the original's, and the attack learns the name again.
    """

    access: ClassVar[Access] = "white box"
    through_unet: ClassVar[bool] = False
    counts: tuple[int, ...] = at_least(1, (1, 2, 4))
    """Free embeddings, one row each (ours)."""
    steps: int = at_least(1, 120)
    """Steps of Adam (ours: by then the loss has settled)."""
    learning_rate: float = at_least(0, 0.01)
    """Learning rate at its peak, on a cosine schedule (ours: half the spread of CLIP's embeddings)."""
    captions: int = at_least(1, 24)
    """Training captions that are fitted (ours)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe for each count."""
        return [self._probe(target, count) for count in self.counts]

    def _probe(self, target: Target, count: int) -> Probe:
        captions = target.training[: self.captions]
        named = with_name(target, captions)
        rows = token_rows(target, in_place_of_name(captions, [0] * count))
        source = counterparts(rows, named)
        with torch.no_grad():
            original = encode_rows(target, target.original, named)
        vectors = random_words(target, count)
        optimizer = torch.optim.Adam(list(vectors.values()), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            attacked = encode_rows(target, target.erased, rows, vectors)
            descend(optimizer, state_loss(attacked, original, source).mean())
            schedule.step()
        return embedding_probe(target, f"{count} embedding{'s' * (count > 1)}", vectors)


def random_words(target: Target, count: int) -> dict[str, Tensor]:
    """Embeddings to optimize, (count, width) by encoder, initialized with those of random tokens."""
    vectors = {}
    for name, encoder in target.erased.items():
        table = embedding_table(encoder)
        chosen = torch.randint(len(table), (count,), generator=target.generator())
        vectors[name] = table[chosen].float().clone().requires_grad_()
    return vectors


def embedding_probe(target: Target, name: str, vectors: dict[str, Tensor]) -> Probe:
    """The target's captions with free embeddings in the name's place."""
    count = len(next(iter(vectors.values())))
    rows = token_rows(target, in_place_of_name(target.captions, [0] * count))
    with torch.no_grad():
        fixed = {encoder: tensor.detach() for encoder, tensor in vectors.items()}
        return Probe(
            name=name,
            texts=tuple(
                caption.with_phrase(" ".join(["<*>"] * count)) for caption in target.captions
            ),
            embeds=encode_rows(target, target.erased, rows, fixed),
        )
