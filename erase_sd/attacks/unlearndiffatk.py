"""Adversarial prefixes for prompts, found by the erased model's own denoising loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least, descend
from .denoising import denoising_loss, noisy, photograph_latents
from .target import Target
from .tokens import TokenRows, embedding_table, encode_rows, token_rows, typeable_words


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(Attack):
    """Zhang et al. 2024, arXiv 2310.11868: a few tokens before each prompt that names the concept.

    Differs: all prompts are attacked in one batch, each step with one timestep per prompt. Tokens are
    words that a user can type. Each position holds a distribution over them, the forward pass takes
    its most probable word, and the gradient passes straight through (the paper projects onto the
    simplex). The photograph of the caption is the image that the prompt is to bring back.
    """

    access: ClassVar[Access] = "white box"
    prompts: int = at_least(1, 12)
    """Prompts attacked, each with a prefix of its own (ours)."""
    tokens: int = at_least(1, 3)
    """Words of a prefix (ours; Zhang et al.: 3 to 5)."""
    steps: int = at_least(1, 40)
    """Steps of Adam (Zhang et al.: 40)."""
    learning_rate: float = at_least(0, 0.3)
    """Learning rate of the distributions' logits (ours)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe: the prompts with the prefixes whose losses were lowest on average."""
        captions = target.captions[: self.prompts]
        words, generator = typeable_words(target), target.generator()
        allowed = torch.tensor(list(words))
        latents = photograph_latents(target, [caption.image for caption in captions])
        logits = torch.randn((len(captions), self.tokens, len(allowed)), generator=generator)
        logits.requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.learning_rate)
        texts = [caption.text for caption in captions]
        rows = token_rows(target, [("", [0] * self.tokens, text) for text in texts])
        for _ in range(self.steps):
            batch = noisy(target, latents, generator)
            embeds = encode_rows(
                target, target.erased, rows, straight_through(target, logits, allowed)
            )
            descend(optimizer, denoising_loss(target, batch, embeds))
        chosen = logits.argmax(-1)
        prefixes = [" ".join(words[int(allowed[i])] for i in row) for row in chosen]
        return [
            prompts_probe(
                target, "prefixes", [f"{p} {t}" for p, t in zip(prefixes, texts, strict=True)]
            )
        ]


def straight_through(target: Target, logits: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    """Embeddings (n, length, width) of the most probable words, with the gradient of the mean
    embedding under the distribution, by encoder."""
    weights = logits.softmax(-1)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), len(allowed)).to(weights)
    weights = hard + weights - weights.detach()
    vectors = {}
    for name, encoder in target.erased.items():
        table = embedding_table(encoder)[allowed]
        vectors[name] = weights.to(table.device) @ table
    return vectors


def prompts_probe(target: Target, name: str, prompts: list[str]) -> Probe:
    """Prompts that take turns until there is one per image."""
    texts = tuple(prompts[i % len(prompts)] for i in range(target.n))
    rows: TokenRows = token_rows(target, [(text, (), "") for text in texts])
    with torch.no_grad():
        return Probe(
            name=name,
            texts=texts,
            embeds=encode_rows(target, target.erased, rows),
            original=encode_rows(target, target.original, rows),
            found=tuple(prompts),
        )
