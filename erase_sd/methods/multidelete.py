"""MultiDelete (Cheng and Amiri, ECCV 2024, arXiv 2311.12047): pairs that are pairs no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Batch, Method, Student


@dataclass(frozen=True, kw_only=True)
class MultiDelete(Method):
    """Cheng and Amiri, MultiDelete (ECCV 2024, arXiv 2311.12047): the forget pairs as strangers.

    Differs: a pair's representation is its similarity, as CLIP has no joint one; strangers are the
    batch's retain images with its retain captions shifted by a random number of rows, so that a few
    may be two captions of one image; the unimodal term is the squared distance of unit features,
    summed over their dimensions, not its mean.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"images", "features"})
    rate: ClassVar[float] = 6e-3
    decouple_weight: float = 1.0
    """Of the forget pairs' distance to strangers (alpha; 1 inferred)."""
    retain_weight: float = 1.0
    """Of the retain pairs' distance to what they were (beta; 1 inferred)."""
    unimodal_weight: float = 1.0
    """Of the distance of the retain images and captions themselves (gamma; 1 inferred)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Three scalars: two mean squared differences of similarities, one mean squared distance."""
        forget, retain = student(batch.forget), student(batch.retain)
        then, n = batch.retain.original, len(batch.retain.original.text)
        shift = int(torch.randint(1, n, (1,), generator=batch.generator))
        strangers = (then.image * then.text.roll(shift, 0)).sum(-1)
        picked = torch.randint(n, (len(forget.text),), generator=batch.generator)
        pair, before = (retain.image * retain.text).sum(-1), (then.image * then.text).sum(-1)
        loose = (forget.image * forget.text).sum(-1) - strangers[picked.to(strangers.device)]
        alone = (retain.text - then.text).square() + (retain.image - then.image).square()
        return {
            "decouple": self.decouple_weight * loose.square().mean(),
            "retain": self.retain_weight * (pair - before).square().mean(),
            "unimodal": self.unimodal_weight * alone.sum(-1).mean(),
        }
