"""Prompts with which the erased model denoises as the original does under the concept's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least
from .probes import prompts_probe
from .target import Embeds, Target
from .tokens import embedding_table, encode_rows, token_rows, typeable_words, with_name
from .word_optimization import Words, optimized_words


@dataclass(frozen=True, kw_only=True)
class Prompting4Debugging(Attack):
    """Chin et al. 2024, arXiv 2309.06135: P4D-N, a prompt of N words instead of the given one.

    Differs: all prompts are attacked in one batch, each step with one timestep per prompt, on the
    captions' photographs. A continuous prompt is kept for each; the forward pass takes the nearest
    words that a user can type, and the gradient passes straight through to the continuous one.
    """

    access: ClassVar[Access] = "white box"
    prompts: int = at_least(1, 8)
    """Prompts attacked (ours)."""
    tokens: int = at_least(1, 8)
    """Words of a prompt (ours: about as many as a caption has; Chin et al.: 16)."""
    steps: int = at_least(1, 50)
    """Steps of Adam (ours; Chin et al.: 3,000)."""
    learning_rate: float = at_least(0, 0.02)
    """Learning rate of the continuous prompts (ours: the spread of CLIP's embeddings)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe: the prompts found, in turns."""
        captions = target.captions[: self.prompts]
        words, generator = typeable_words(target), target.generator()
        allowed = torch.tensor(list(words))
        with torch.no_grad():
            named = encode_rows(target, target.original, with_name(target, captions))
        # One continuous prompt: the first encoder's. A second encoder reads the same words.
        tables = {name: embedding_table(e)[allowed] for name, e in target.erased.items()}
        first = next(iter(tables.values()))
        start = torch.randint(len(allowed), (len(captions), self.tokens), generator=generator)

        def loss(latents: Tensor, embeds: Embeds) -> Tensor:
            noisy, _ = target.denoiser.add_noise(latents, generator)
            with torch.no_grad():
                wanted = target.original_denoiser.predict(noisy, named)
            return (target.denoiser.predict(noisy, embeds) - wanted).square().mean()

        chosen = optimized_words(
            target,
            captions,
            token_rows(target, [("", [0] * self.tokens, "")] * len(captions)),
            first[start].clone(),
            lambda prompt: nearest_words(prompt, tables),
            loss,
            self.steps,
            self.learning_rate,
        )
        prompts = [" ".join(words[int(allowed[i])] for i in row) for row in chosen]
        return [prompts_probe(target, f"prompts of {self.tokens} words", prompts)]


def nearest_words(prompt: Tensor, tables: dict[str, Tensor]) -> Words:
    """The words nearest to a continuous prompt (n, length, width) of the first encoder, whose embeddings
    pass their gradient to it."""
    name, first = next(iter(tables.items()))
    distances = torch.cdist(prompt.detach().flatten(0, 1), first)
    nearest = distances.argmin(-1).view(prompt.shape[:2])
    vectors = {name: table[nearest] for name, table in tables.items()}
    vectors[name] = vectors[name] + prompt - prompt.detach()
    return nearest, vectors
