"""The batch of each step, reproducible from seed and step."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import runtime
from ..errors import ModelError
from ..methods.base import Batch, ConceptRemoved, EncodedPairs, Encodings, Need, TokenizedPairs
from ..models.clip import Clip
from ..sharing import place
from ..sharing.rows import by_rows
from .settings import UnlearnSettings
from .student import ClipStudent


class Batches:
    """Samples forget pairs with replacement and retain pairs without.

    `sizes`, forget and retain pairs per step, shrink if memory runs out. In labelled data, `prompts`
    (templates, classes, tokens) are the classes' captions; each step uses those of one template.
    """

    def __init__(
        self,
        settings: UnlearnSettings,
        original: Clip,
        forget: TokenizedPairs,
        retain: TokenizedPairs,
        prompts: Tensor | None = None,
    ) -> None:
        self.settings, self.original = settings, original
        self.forget, self.retain, self.prompts = forget, retain, prompts
        self.sizes = (settings.forget_batch, settings.retain_batch)

    def at(
        self, step: int, steps: int, needs: frozenset[Need], memory: dict[str, Tensor] | None = None
    ) -> Batch:
        """The batch of `step`, from 0, with the encodings that a method needs and a copy of its memory."""
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + step)
        forget = torch.randint(len(self.forget), (self.sizes[0],), generator=generator)
        retain = torch.randperm(len(self.retain), generator=generator)[: self.sizes[1]]
        prompts = self._class_prompts(needs, generator)
        concept_removed = None
        text = hidden_states = None
        if "hidden_states" in needs:
            concept_removed, text, hidden_states = self._originals(forget, retain)
        return Batch(
            self._encode(self.forget, forget, needs),
            self._encode(self.retain, retain, needs, text, hidden_states, prompts),
            concept_removed,
            step / steps,
            generator,
            dict(memory or {}),
        )

    def shrink(self, student: ClipStudent) -> None:
        """After memory ran out, lets the student encode one set after the other, or, if it does, halves
        the batches; ModelError if they cannot be smaller, or if other processes would go on with the
        larger ones."""
        if place()[1] > 1:
            raise ModelError("out of memory; needs smaller batches", field="retain_batch")
        if student.joins:
            student.joins = False
            runtime.free_memory()
            return
        forget, retain = (size // 2 for size in self.sizes)
        if forget < 1 or retain < 2:  # a contrastive loss needs two pairs
            raise ModelError(
                "out of memory with the smallest batches; needs a device with more memory"
            )
        self.sizes = (forget, retain)
        runtime.free_memory()
        runtime.log.warning(
            "out of memory; continuing with %d forget and %d retain captions per step",
            forget,
            retain,
        )

    def _originals(self, forget: Tensor, retain: Tensor) -> tuple[ConceptRemoved, Tensor, Tensor]:
        """The targets of the forget captions; features and hidden states of the retain captions."""
        parts = [self.forget.concept_removed_ids[forget], self.retain.ids[retain]]
        if self.original.starts_slowly:
            both = self._original(torch.cat(parts))
            sizes = [len(forget), len(retain)]
            (_, removed), (text, hidden_states) = zip(
                *(torch.split(t, sizes) for t in both), strict=True
            )
        else:
            (_, removed), (text, hidden_states) = map(self._original, parts)
        mask = self.forget.mask[forget].to(removed.device)
        target = ConceptRemoved(self.forget.aligned(forget, removed), mask)
        return target, text, hidden_states

    def _encode(
        self,
        pairs: TokenizedPairs,
        rows: Tensor,
        needs: frozenset[Need],
        text: Tensor | None = None,
        hidden_states: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> EncodedPairs:
        ids = pairs.ids[rows]
        pixels = candidates = None
        if text is None and "features" in needs:
            text = self._features(ids)
            candidates = None if prompts is None else self._features(prompts)
        if self.settings.towers == "both":
            pixels = self.original.pixels([pairs.paths[row] for row in rows.tolist()])
        image = None if pairs.image is None else pairs.image[rows].to(self.original.device)
        label = None if pairs.label is None else pairs.label[rows].to(self.original.device)
        original = Encodings(text, image, hidden_states, candidates, label)
        return EncodedPairs(ids, original, pixels, prompts)

    def _features(self, ids: Tensor) -> Tensor:
        """The original's features of captions, without a gradient."""
        return self._original(self.original.cut(ids))[0]

    def _original(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The original's features and hidden states of captions, without a gradient.

        They are not kept from step to step: the time that this saves is not worth the memory.
        """
        text, hidden_states = by_rows(self.original.encode_texts, ids)
        return text, hidden_states

    def _class_prompts(self, needs: frozenset[Need], generator: torch.Generator) -> Tensor | None:
        """The prompts of all classes by a random template, (classes, tokens), in labelled data.

        Losses on hidden states compare a caption with itself, and need none.
        """
        if self.prompts is None or "hidden_states" in needs:
            return None
        return self.prompts[int(torch.randint(len(self.prompts), (1,), generator=generator))]
