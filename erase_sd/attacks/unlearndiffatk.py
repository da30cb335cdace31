"""Adversarial prefixes for prompts, found by the erased model's own denoising loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least
from .probes import prompts_probe
from .target import Target
from .tokens import embedding_table, token_rows, typeable_words
from .word_optimization import Words, optimized_words


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(Attack):
    """Zhang et al. 2024, arXiv 2310.11868: a few tokens before each prompt that names the concept.

    Differs: all prompts are attacked in one batch, each step with one timestep per prompt, and judged by
    the prefixes of the last step; the authors' code generates an image after each timestep, and one that
    shows the concept counts as a success. Tokens are words that a user can type. Each position holds a
    distribution over them, the forward pass takes its most probable word, and the gradient passes
    straight through (the paper projects onto the simplex). The photograph of the caption is the image
    that the prompt is to bring back.
    """

    access: ClassVar[Access] = "white box"
    prompts: int = at_least(1, 12)
    """Prompts attacked, each with a prefix of its own (ours)."""
    tokens: int = at_least(1, 3)
    """Words of a prefix (ours; Zhang et al.: 3 to 5)."""
    steps: int = at_least(1, 40)
    """Steps of Adam (ours; Zhang et al.: 40 at each of 50 timesteps)."""
    learning_rate: float = at_least(0, 0.3)
    """Learning rate of the distributions' logits (ours)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe: the prompts with the prefixes of the last step, in turns."""
        captions = target.captions[: self.prompts]
        words, generator = typeable_words(target), target.generator()
        allowed = torch.tensor(list(words))
        logits = torch.randn((len(captions), self.tokens, len(allowed)), generator=generator)
        texts = [caption.text for caption in captions]
        chosen = optimized_words(
            target,
            captions,
            token_rows(target, [("", [0] * self.tokens, text) for text in texts]),
            logits,
            lambda logits: straight_through(target, logits, allowed),
            lambda latents, embeds: target.denoising_loss(latents, embeds, generator),
            self.steps,
            self.learning_rate,
        )
        prefixes = [" ".join(words[int(allowed[i])] for i in row) for row in chosen]
        prompts = [f"{prefix} {text}" for prefix, text in zip(prefixes, texts, strict=True)]
        return [prompts_probe(target, "prefixes", prompts)]


def straight_through(target: Target, logits: Tensor, allowed: Tensor) -> Words:
    """The most probable words, with the gradient of the mean embedding under the distribution."""
    weights, best = logits.softmax(-1), logits.argmax(-1)
    hard = torch.nn.functional.one_hot(best, len(allowed)).to(weights)
    weights = hard + weights - weights.detach()
    vectors = {}
    for name, encoder in target.erased.items():
        table = embedding_table(encoder)[allowed]
        vectors[name] = weights.to(table.device) @ table
    return best, vectors
