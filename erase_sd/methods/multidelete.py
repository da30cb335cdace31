"""MultiDelete (Cheng and Amiri, ECCV 2024, arXiv 2311.12047): forget pairs become unrelated pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Batch, Method, Need, Student


@dataclass(frozen=True, kw_only=True)
class MultiDelete(Method):
    """Cheng and Amiri, MultiDelete (ECCV 2024, arXiv 2311.12047): decouples the forget pairs.

    Differs: a pair is represented by its similarity, because CLIP has no joint representation.
    Unrelated pairs are the batch's retain images with its retain captions shifted by a random number
    of rows, so a few may be an image with another of its own captions. The unimodal term is the
    squared distance of unit features summed over their dimensions, not averaged.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images", "features"})
    learning_rate: ClassVar[float] = 6e-3
    decouple_weight: float = 1.0
    """Weight of the squared difference between the similarities of forget pairs and unrelated pairs
    (alpha; 1 inferred)."""
    retain_weight: float = 1.0
    """Weight of the squared change of the retain pairs' similarities (beta; 1 inferred)."""
    unimodal_weight: float = 1.0
    """Weight of the squared change of the retain images' and captions' features (gamma; 1 inferred)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `decouple`, `retain` and `unimodal`."""
        forget, retain = student(batch.forget), student(batch.retain)
        original, n = batch.retain.original, len(batch.retain.ids)
        shift = int(torch.randint(1, n, (1,), generator=batch.generator))
        unrelated = (original.image * original.text.roll(shift, 0)).sum(-1)
        sample = torch.randint(n, (len(forget.text),), generator=batch.generator)
        after = (retain.image * retain.text).sum(-1)
        before = (original.image * original.text).sum(-1)
        coupling = (forget.image * forget.text).sum(-1) - unrelated[sample.to(unrelated.device)]
        change = (retain.text - original.text).square() + (retain.image - original.image).square()
        return {
            "decouple": self.decouple_weight * coupling.square().mean(),
            "retain": self.retain_weight * (after - before).square().mean(),
            "unimodal": self.unimodal_weight * change.sum(-1).mean(),
        }
