"""Prompts with which the erased model denoises as the original does under the concept's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least, descend
from .denoising import noisy, photograph_latents, predict
from .target import Target
from .tokens import embedding_table, encode_rows, token_rows, typeable_words, with_name
from .unlearndiffatk import prompts_probe


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
        latents = photograph_latents(target, [caption.image for caption in captions])
        rows = token_rows(target, [("", [0] * self.tokens, "")] * len(captions))
        with torch.no_grad():
            named = encode_rows(target, target.original, with_name(target, captions))
        start = torch.randint(len(allowed), (len(captions), self.tokens), generator=generator)
        # One continuous prompt: the first encoder's. A second encoder reads the same words.
        tables = {name: embedding_table(e)[allowed] for name, e in target.erased.items()}
        first = next(iter(tables.values()))
        prompt = first[start].clone().requires_grad_()
        optimizer = torch.optim.Adam([prompt], lr=self.learning_rate)
        for _ in range(self.steps):
            nearest = torch.cdist(prompt.detach().flatten(0, 1), first).argmin(-1)
            vectors = self._vectors(tables, nearest.view(start.shape), prompt)
            batch = noisy(target, latents, generator)
            with torch.no_grad():
                wanted = predict(target, batch, named, original=True)
            own = predict(target, batch, encode_rows(target, target.erased, rows, vectors))
            descend(optimizer, (own - wanted).square().mean())
        nearest = torch.cdist(prompt.detach().flatten(0, 1), first).argmin(-1).cpu()
        prompts = [
            " ".join(words[int(allowed[i])] for i in row) for row in nearest.view(start.shape)
        ]
        return [prompts_probe(target, f"prompts of {self.tokens} words", prompts)]

    def _vectors(
        self, tables: dict[str, Tensor], nearest: Tensor, prompt: Tensor
    ) -> dict[str, Tensor]:
        """Embeddings of the nearest words; the first encoder's pass their gradient to the prompt."""
        vectors = {name: table[nearest] for name, table in tables.items()}
        name = next(iter(vectors))
        vectors[name] = vectors[name] + prompt - prompt.detach()
        return vectors
