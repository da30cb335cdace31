"""Textual inversion: a new word, learned from photographs through the erased encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Access, Attack, Probe, at_least, descend
from .embeddings import embedding_probe, random_words
from .target import AttackedCaption, Embeds, Target
from .tokens import encode_rows, in_place_of_name, token_rows


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Attack):
    """Pham et al. 2023, arXiv 2308.01508: concept inversion of an erased model.

    Differs: the new word stands in the name's place in the photographs' own captions, not in "a photo
    of". The U-Net's loss on the photographs is minimized over the word's embeddings alone. A baseline
    learns the hidden state at the word's position instead, behind the encoder. The encoder's layers add
    to their input, so a large enough embedding sets the direction of the state at its own position:
    where the baseline succeeds, erasing the text encoder alone can hardly prevent textual inversion.
    """

    access: ClassVar[Access] = "white box"
    tokens: tuple[int, ...] = at_least(1, (1,))
    """Embeddings of the word, one row each (textual inversion: 1)."""
    images: int = at_least(1, 48)
    """Photographs to learn from (ours; textual inversion: 3 to 5)."""
    steps: tuple[int, ...] = at_least(1, (150,))
    """Steps of Adam after which images are generated, one row each (ours; textual inversion: 5,000)."""
    batch: int = at_least(1, 8)
    """Photographs per step (ours)."""
    learning_rate: float = at_least(0, 0.1)
    """Learning rate, constant (ours: the strongest of 0.003, 0.01, 0.03 and 0.1 on validation captions;
    textual inversion: 5e-3)."""

    def run(self, target: Target) -> list[Probe]:
        """For each number of steps, one probe per number of tokens and one for the baseline."""
        words = [probe for count in self.tokens for probe in self._words(target, count)]
        return [*words, *self._states(target)]

    def _words(self, target: Target, count: int) -> Iterator[Probe]:
        vectors = random_words(target, count)

        def encode(captions: Sequence[AttackedCaption]) -> Embeds:
            rows = token_rows(target, in_place_of_name(captions, [0] * count))
            return encode_rows(target, target.erased, rows, vectors)

        for step in self._learn(target, list(vectors.values()), encode):
            name = f"{count} token{'s' * (count > 1)}, {step} steps"
            yield embedding_probe(target, name, vectors)

    def _states(self, target: Target) -> Iterator[Probe]:
        """Learns the direction of a hidden state, with the mean norm of the encoder's own hidden states."""
        own = _with_filler(target, target.training[: self.images])[0]["prompt_embeds"]
        state = own.mean((0, 1)).requires_grad_()
        norm = own.norm(dim=-1).mean()

        def encode(captions: Sequence[AttackedCaption]) -> Embeds:
            embeds, positions = _with_filler(target, captions)
            states = embeds["prompt_embeds"]
            places = (torch.arange(len(captions)).to(states.device), positions.to(states.device))
            value = (norm * state / state.norm()).expand(len(captions), -1)
            return {**embeds, "prompt_embeds": states.index_put(places, value)}

        for step in self._learn(target, [state], encode):
            with torch.no_grad():
                yield Probe(
                    name=f"1 state behind the encoder, {step} steps",
                    texts=tuple(caption.with_phrase("<*>") for caption in target.captions),
                    embeds=encode(target.captions),
                    control=True,
                )

    def _learn(
        self,
        target: Target,
        leaves: list[Tensor],
        encode: Callable[[Sequence[AttackedCaption]], Embeds],
    ) -> Iterator[int]:
        """Minimizes the U-Net's loss on the photographs over `leaves`, from which `encode` computes the
        captions' encodings; yields at each of `steps`."""
        captions = target.training[: self.images]
        latents = target.denoiser.latents([caption.image for caption in captions])
        generator, optimizer = target.generator(), torch.optim.Adam(leaves, lr=self.learning_rate)
        for step in range(1, max(self.steps) + 1):
            chosen = torch.randperm(len(captions), generator=generator)[: self.batch]
            embeds = encode([captions[i] for i in chosen])
            own = latents[chosen.to(latents.device)]
            descend(optimizer, target.denoising_loss(own, embeds, generator))
            if step in self.steps:
                yield step


@torch.no_grad()
def _with_filler(target: Target, captions: Sequence[AttackedCaption]) -> tuple[Embeds, Tensor]:
    """The erased encoders' output for captions with one token in the name's place, and its positions."""
    rows = token_rows(target, in_place_of_name(captions, [0]))
    return encode_rows(target, target.erased, rows), rows.start
