"""Negative preference optimization (Zhang et al., COLM 2024, arXiv 2404.05868), adapted to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from .base import Batch, Method, Need, Student, greater_than
from .losses import contrast


@dataclass(frozen=True, kw_only=True)
class NPO(Method):
    """Zhang et al., NPO (COLM 2024, arXiv 2404.05868): ascent that slows down as it departs.

    Differs: the log-likelihood of a pair is CLIP's contrastive one, with the pairs of both sets as
    candidates.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images", "features"})
    learning_rate: ClassVar[float] = 1e-3
    temperature: float = greater_than(0, 0.1)
    """Inverse temperature of the preference, which approaches gradient ascent as it goes to 0 (beta;
    0.1 in the paper)."""
    forget_weight: float = 1.0
    """Weight of the preference term on the forget pairs (1 in the paper)."""
    retain_weight: float = 1.0
    """Weight of the contrastive loss on the retain pairs (1 in the paper)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """`forget`, 2 / beta * -log sigmoid(beta (loss - original's loss)), and `retain`."""
        forget, retain = contrast(student, student(batch.forget), student(batch.retain))
        original, _ = contrast(student, batch.forget.original, batch.retain.original)
        preference = -F.logsigmoid(self.temperature * (forget - original))
        return {
            "forget": self.forget_weight * 2 / self.temperature * preference.mean(),
            "retain": self.retain_weight * retain.mean(),
        }
