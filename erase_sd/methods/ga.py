"""Gradient ascent (Thudi et al., EuroS&P 2022, arXiv 2109.13398), adapted to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Need, Student
from .losses import contrast


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Method):
    """Thudi et al. (EuroS&P 2022, arXiv 2109.13398): gradient ascent on the forget loss.

    Differs: the loss is CLIP's contrastive loss of the forget pairs, with the pairs of both sets as
    candidates. The temperature is frozen, or the ascent would change nothing else. The loss is
    unbounded and nothing protects the retain set.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images"})
    learning_rate: ClassVar[float] = 3e-4
    forget_weight: float = 1.0
    """Weight of the contrastive loss on the forget pairs, which is maximized (1 in the paper)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `forget`, which is negative."""
        forget, _ = contrast(student, student(batch.forget), student(batch.retain))
        return {"forget": -self.forget_weight * forget.mean()}
