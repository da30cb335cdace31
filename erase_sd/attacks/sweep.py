"""A sweep of the vocabulary: every word, and random pairs of words, in place of the name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Access, Attack, Probe, at_least
from .probes import words_probe
from .target import Target
from .tokens import (
    counterparts,
    encode_rows,
    in_place_of_name,
    state_loss,
    text_rows,
    token_rows,
    typeable_words,
    with_name,
)


@dataclass(frozen=True, kw_only=True)
class VocabularySweep(Attack):
    """This project: what a patient user without the weights would try.

    One image per word shows which ones might bring the concept back; the best are tried again with
    other captions and seeds, and only those images count. Pairs, and words beyond `words`, are tried
    in the order of their distance to the name in the original's text encoder, which is public.
    """

    access: ClassVar[Access] = "original"
    words: int = at_least(1, 250)
    """Words tried (ours: all of the miniature world's)."""
    pairs: int = at_least(0, 2000)
    """Random pairs of words that are ranked (ours)."""
    pairs_tried: int = at_least(0, 50)
    """Pairs tried, the nearest ones (ours)."""
    steps: int = at_least(1, 6)
    """Denoising steps of the images used for the selection (ours)."""
    kept: int = at_least(1, 5)
    """Words or pairs tried again, those with the most confident detections (ours)."""

    def run(self, target: Target) -> list[Probe]:
        """One probe: the words and pairs with the most confident detections, in turns."""
        words, generator = typeable_words(target), target.generator()
        allowed = list(words)
        pairs = torch.randint(len(allowed), (self.pairs, 2), generator=generator).tolist()
        trials = self._nearest(target, [[number] for number in allowed], self.words)
        trials += self._nearest(
            target, [[allowed[i], allowed[j]] for i, j in pairs], self.pairs_tried
        )
        phrases = [[words[number] for number in trial] for trial in trials]
        captions = target.training
        texts = [
            captions[i % len(captions)].with_phrase(" ".join(p)) for i, p in enumerate(phrases)
        ]
        rows = text_rows(target, texts)
        with torch.no_grad():
            embeds = encode_rows(target, target.erased, rows)
        # Seeds beyond the target's, so that no image that counts shares one.
        seeds = [target.seed + target.n + i for i in range(len(texts))]
        images = target.images(embeds, target.empty(target.erased), seeds, self.steps)
        shown = target.shown(images)
        order = sorted(range(len(shown)), key=lambda i: -shown[i])[: self.kept]
        return [words_probe(target, "words and pairs", [phrases[i] for i in order])]

    def _nearest(self, target: Target, trials: list[list[int]], count: int) -> list[list[int]]:
        """The `count` trials whose states in the original are nearest to those with the name."""
        if count >= len(trials):
            return trials
        caption = target.training[:1]
        distances = []
        with torch.no_grad():
            named = with_name(target, caption)
            original = encode_rows(target, target.original, named)
            for i in range(0, len(trials), 250):
                parts = [p for t in trials[i : i + 250] for p in in_place_of_name(caption, t)]
                rows = token_rows(target, parts)
                n = len(parts)
                expanded = {name: t.expand(n, *t.shape[1:]) for name, t in original.items()}
                own = encode_rows(target, target.original, rows)
                distances += state_loss(own, expanded, counterparts(rows, named)).tolist()
        order = sorted(range(len(trials)), key=lambda i: distances[i])
        return [trials[i] for i in order[:count]]
