"""Negative preference optimisation (Zhang et al., COLM 2024, arXiv 2404.05868), for CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from .base import Batch, Method, Student, above, contrast


@dataclass(frozen=True, kw_only=True)
class NPO(Method):
    """Zhang et al., NPO (COLM 2024, arXiv 2404.05868): an ascent that slows as it gets away.

    Differs: the log-likelihood of a pair is CLIP's contrastive one, over the pairs of both sides.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"images", "features"})
    rate: ClassVar[float] = 1e-3
    temperature: float = above(0, 0.1)
    """The paper's beta: the smaller, the closer to plain ascent."""
    forget_weight: float = 1.0
    """Of the preference term (1)."""
    retain_weight: float = 1.0
    """Of the retain pairs' loss (1)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Two scalars: 2 / beta * -log sigmoid(beta (loss - original's loss)), and the retain loss."""
        forget, retain = contrast(student, student(batch.forget), student(batch.retain))
        before, _ = contrast(student, batch.forget.original, batch.retain.original)
        preferred = -F.logsigmoid(self.temperature * (forget - before))
        return {
            "forget": self.forget_weight * 2 / self.temperature * preferred.mean(),
            "retain": self.retain_weight * retain.mean(),
        }
