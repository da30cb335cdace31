"""KL minimization (as in TOFU, Maini et al., COLM 2024, arXiv 2401.06121), adapted to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Need, Student
from .losses import contrast, similarity_divergence


@dataclass(frozen=True, kw_only=True)
class KLMinimization(Method):
    """Maini et al., TOFU (COLM 2024, arXiv 2401.06121): ascent, with a KL penalty on the retain set.

    Differs: the distributions are CLIP's, over the batch's captions given an image and over its
    images given a caption.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images", "features"})
    learning_rate: ClassVar[float] = 1e-3
    forget_weight: float = 1.0
    """Weight of the contrastive loss on the forget pairs, which is maximized (1 in the paper)."""
    retain_weight: float = 1.0
    """Weight of KL(original || student) on the retain pairs (1 in the paper)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `forget`, which is negative, and `retain`."""
        forget, retain = student(batch.forget), student(batch.retain)
        ascent, _ = contrast(student, forget, retain)
        return {
            "forget": -self.forget_weight * ascent.mean(),
            "retain": self.retain_weight
            * similarity_divergence(student, batch.retain.original, retain),
        }
