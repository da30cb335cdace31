"""Gradient difference (Liu et al., CoLLAs 2022, arXiv 2203.12817), adapted to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Need, Student
from .losses import contrast


@dataclass(frozen=True, kw_only=True)
class GradientDifference(Method):
    """Liu et al. (CoLLAs 2022, arXiv 2203.12817): ascent on the forget set, descent on the retain set.

    Differs: both losses are CLIP's contrastive loss, with the pairs of both sets as candidates.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images"})
    learning_rate: ClassVar[float] = 1e-3
    forget_weight: float = 1.0
    """Weight of the contrastive loss on the forget pairs, which is maximized (1 in the paper)."""
    retain_weight: float = 1.0
    """Weight of the contrastive loss on the retain pairs (1 in the paper)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `forget`, which is negative, and `retain`."""
        forget, retain = contrast(student, student(batch.forget), student(batch.retain))
        return {
            "forget": -self.forget_weight * forget.mean(),
            "retain": self.retain_weight * retain.mean(),
        }
