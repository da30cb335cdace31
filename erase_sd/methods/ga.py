"""Gradient ascent (Thudi et al., EuroS&P 2022, arXiv 2109.13398), carried over to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Student, contrast


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Method):
    """Thudi et al. (EuroS&P 2022, arXiv 2109.13398): up the loss of what is to be forgotten.

    Differs: the loss is CLIP's own, of the forget pairs among the pairs of both sides, and its
    temperature stays, or the ascent would only change that. Nothing holds it back.
    """

    rate: ClassVar[float] = 3e-4
    reads: ClassVar[frozenset[str]] = frozenset({"images"})
    forget_weight: float = 1.0
    """Of the forget pairs' loss, which is climbed (1)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """One scalar, below zero."""
        forget, _ = contrast(student, student(batch.forget), student(batch.retain))
        return {"forget": -self.forget_weight * forget.mean()}
