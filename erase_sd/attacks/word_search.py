"""Greedy coordinate search for words that the erased encoder encodes as the original encodes the name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least
from .probes import words_probe
from .target import AttackedCaption, Embeds, Target
from .tokens import (
    counterparts,
    embedding_table,
    encode_rows,
    filled,
    in_place_of_name,
    state_loss,
    token_rows,
    typeable_words,
    with_name,
)

CHUNK = 16  # trials encoded together


@dataclass(frozen=True, kw_only=True)
class WordSearch(Attack):
    """Zou et al. 2023, arXiv 2307.15043: greedy coordinate gradient, here for hidden states.

    Differs: the distance between the erased encoder's hidden states and the original's for the caption
    with the name is minimized. Only words that a user can type and that do not mention the concept
    take the name's place, the same ones in every caption. The U-Net is not searched through: if it alone
    was erased, the words are those nearest to the name in the original's text encoder.
    """

    access: ClassVar[Access] = "white box"
    through_unet: ClassVar[bool] = False
    counts: tuple[int, ...] = at_least(1, (2, 4))
    """Words in the name's place, one row each (ours)."""
    rounds: int = at_least(1, 16)
    """Rounds, each of which replaces at most one word (ours; Zou et al.: 500)."""
    candidates: int = at_least(1, 64)
    """Replacements tried per round, those with the steepest gradient (ours; Zou et al.: 512)."""
    captions: int = at_least(1, 8)
    """Training captions that are fitted (ours)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe for each number of words."""
        words = typeable_words(target)
        return [self._probe(target, words, count) for count in self.counts]

    def _probe(self, target: Target, words: dict[int, str], count: int) -> Probe:
        captions = target.training[: self.captions]
        with torch.no_grad():
            original = encode_rows(target, target.original, with_name(target, captions))
        generator, allowed = target.generator(), torch.tensor(list(words))
        best = allowed[torch.randint(len(allowed), (count,), generator=generator)].tolist()
        lowest = self._losses(target, captions, original, [best])[0]
        for _ in range(self.rounds):
            trials = self._candidates(target, captions, original, best, allowed)
            losses = self._losses(target, captions, original, trials)
            if min(losses) >= lowest:
                break
            lowest = min(losses)
            best = trials[losses.index(lowest)]
        return words_probe(target, f"{count} words", [[words[i] for i in best]])

    def _candidates(
        self,
        target: Target,
        captions: tuple[AttackedCaption, ...],
        original: Embeds,
        best: list[int],
        allowed: Tensor,
    ) -> list[list[int]]:
        """The words with one replaced, steepest descent of the loss first."""
        rows = token_rows(target, in_place_of_name(captions, best))
        tables = {name: embedding_table(encoder) for name, encoder in target.erased.items()}
        vectors = {name: table[best].clone().requires_grad_() for name, table in tables.items()}
        attacked = encode_rows(target, target.erased, rows, vectors)
        loss = state_loss(attacked, original, counterparts(rows, with_name(target, captions)))
        torch.autograd.backward(loss.mean())
        slopes = torch.zeros(len(best), len(allowed))
        for name, table in tables.items():
            gradient = vectors[name].grad
            assert gradient is not None
            slopes += (gradient @ table[allowed].T).cpu()  # (words, vocabulary)
        order = slopes.flatten().argsort()[: self.candidates].tolist()
        places = (divmod(flat, len(allowed)) for flat in order)
        return [[*best[:i], int(allowed[j]), *best[i + 1 :]] for i, j in places]

    def _losses(
        self,
        target: Target,
        captions: tuple[AttackedCaption, ...],
        original: Embeds,
        trials: list[list[int]],
    ) -> list[float]:
        """The mean loss of each trial over the captions."""
        named = with_name(target, captions)
        rows = token_rows(target, in_place_of_name(captions, trials[0]))
        source, n, losses = counterparts(rows, named), len(captions), []
        with torch.no_grad():
            for i in range(0, len(trials), CHUNK):
                chunk = trials[i : i + CHUNK]
                own = encode_rows(target, target.erased, filled(rows, torch.tensor(chunk)))
                wanted = {
                    name: t.repeat(len(chunk), *[1] * (t.ndim - 1)) for name, t in original.items()
                }
                loss = state_loss(own, wanted, source.repeat(len(chunk), 1))
                losses += loss.view(len(chunk), n).mean(1).tolist()
        return losses
