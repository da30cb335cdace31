"""Gradient difference (Liu et al., CoLLAs 2022, arXiv 2203.12817), carried over to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Student, contrast


@dataclass(frozen=True, kw_only=True)
class GradientDifference(Method):
    """Liu et al. (CoLLAs 2022, arXiv 2203.12817): up on the forget pairs, down on the others.

    Differs: both losses are CLIP's own, over the pairs of both sides.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"images"})
    rate: ClassVar[float] = 1e-3
    forget_weight: float = 1.0
    """Of the forget pairs' loss, which is climbed (1)."""
    retain_weight: float = 1.0
    """Of the retain pairs' loss (1)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Two scalars."""
        forget, retain = contrast(student, student(batch.forget), student(batch.retain))
        return {
            "forget": -self.forget_weight * forget.mean(),
            "retain": self.retain_weight * retain.mean(),
        }
