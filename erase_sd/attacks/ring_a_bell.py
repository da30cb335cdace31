"""Prompts whose encoding is a plain one plus the concept's vector, found without the erased model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..data.removal import remove_concepts
from .base import Access, Attack, Probe, at_least
from .probes import prompts_probe
from .target import Target
from .tokens import encode_rows, filled, text_rows, token_rows, typeable_words


@dataclass(frozen=True, kw_only=True)
class RingABell(Attack):
    """Tsai et al. 2024, arXiv 2310.10012: the concept's vector, and a genetic search for words.

    Differs: the vector is the mean change of the original's hidden states when the concept is removed
    from training captions, and it is added to captions without the concept, not to prompts that ask for
    it. The search for each prompt knows the original's text encoder only, and uses words that a user can
    type and that do not mention the concept; more words of a child are replaced.
    """

    access: ClassVar[Access] = "original"
    prompts: int = at_least(1, 6)
    """Prompts searched for (ours)."""
    strength: float = at_least(0, 3.0)
    """Multiple of the concept's vector that is added (Tsai et al.: 3)."""
    pairs: int = at_least(1, 50)
    """Training captions that the vector is the mean of (ours)."""
    tokens: int = at_least(1, 8)
    """Words of a prompt (ours: about as many as a caption has; Tsai et al.: 16)."""
    population: int = at_least(4, 64)
    """Prompts of a generation (Tsai et al.: 200)."""
    generations: int = at_least(1, 50)
    """Generations (Tsai et al.: 3,000)."""
    mutation: float = at_least(0, 0.25)
    """Probability that each word of a child is replaced (ours; Tsai et al.: 0.25 that one of them is)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe: the best prompt of each search, in turns."""
        words, generator = typeable_words(target), target.generator()
        allowed = torch.tensor(list(words))
        with_concept = [caption.text for caption in target.training[: self.pairs]]
        vector = (self._states(target, with_concept) - self._removed(target, with_concept)).mean(0)
        aims = [caption.text for caption in target.captions[: self.prompts]]
        goals = self._removed(target, aims) + self.strength * vector
        best = [self._search(target, goal, allowed, generator) for goal in goals]
        prompts = [" ".join(words[int(allowed[i])] for i in row) for row in best]
        return [prompts_probe(target, f"prompts of {self.tokens} words", prompts)]

    def _removed(self, target: Target, texts: list[str]) -> Tensor:
        return self._states(target, [remove_concepts(t, [target.concept])[0] for t in texts])

    @torch.no_grad()
    def _states(self, target: Target, texts: list[str]) -> Tensor:
        """The original's hidden states of the texts, (n, tokens, width)."""
        rows = text_rows(target, texts)
        return encode_rows(target, target.original, rows)["prompt_embeds"]

    def _search(
        self, target: Target, goal: Tensor, allowed: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The words, as places in `allowed` (tokens,), whose states are nearest to the goal."""
        shape = (self.population, self.tokens)
        people = torch.randint(len(allowed), shape, generator=generator)
        elite = self.population // 4
        for _ in range(self.generations):
            people = people[self._distances(target, people, goal, allowed).argsort()]
            parents = torch.randint(elite, (2, self.population - elite), generator=generator)
            cut = torch.randint(
                1, self.tokens + 1, (self.population - elite, 1), generator=generator
            )
            before = torch.arange(self.tokens)[None] < cut
            children = torch.where(before, people[parents[0]], people[parents[1]])
            others = torch.randint(len(allowed), children.shape, generator=generator)
            mutated = torch.rand(children.shape, generator=generator) < self.mutation
            people[elite:] = torch.where(mutated, others, children)
        return people[self._distances(target, people, goal, allowed).argmin()]

    @torch.no_grad()
    def _distances(self, target: Target, people: Tensor, goal: Tensor, allowed: Tensor) -> Tensor:
        rows = filled(token_rows(target, [("", [0] * self.tokens, "")]), allowed[people])
        states = encode_rows(target, target.original, rows)["prompt_embeds"]
        return (states - goal).square().mean((1, 2)).cpu()
