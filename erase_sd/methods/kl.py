"""KL minimisation (as in TOFU, Maini et al., COLM 2024, arXiv 2401.06121), carried over to CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Student, contrast, drift


@dataclass(frozen=True, kw_only=True)
class KLMinimization(Method):
    """Maini et al., TOFU (COLM 2024, arXiv 2401.06121): ascent, held to the original elsewhere.

    Differs: the distributions are CLIP's, of the batch's captions for an image and of its images
    for a caption.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"images", "features"})
    rate: ClassVar[float] = 1e-3
    forget_weight: float = 1.0
    """Of the forget pairs' loss, which is climbed (1)."""
    retain_weight: float = 1.0
    """Of KL(original || now) on the retain pairs (1)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Two scalars."""
        forget, retain = student(batch.forget), student(batch.retain)
        away, _ = contrast(student, forget, retain)
        return {
            "forget": -self.forget_weight * away.mean(),
            "retain": self.retain_weight * drift(student, batch.retain.original, retain),
        }
