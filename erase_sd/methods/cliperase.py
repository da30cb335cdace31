"""CLIPErase (Yang et al., ACL 2025, arXiv 2410.23330): forgetting, retention and consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .base import Batch, Method, Need, Student
from .losses import contrast, divergence, similarity_divergence


@dataclass(frozen=True, kw_only=True)
class CLIPErase(Method):
    """Yang et al., CLIPErase (ACL 2025, arXiv 2410.23330), Eq. 1-5, on the pooled features.

    Differs: batches of 48 forget and 96 retain pairs instead of 16, 120 steps on a cosine schedule
    instead of 20 epochs, and only the text tower is trained (the paper trains both: towers=both). Where
    the paper's text is ambiguous, retention is CLIP's symmetric loss rather than image-to-text only,
    and `consistency` selects the softmax. A weight of 0 switches a module off.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images", "features"})
    learning_rate: ClassVar[float] = 4e-4  # the paper's 1e-6 is for a tower a hundred times larger
    forget_weight: float = 3.0
    """Weight of the forgetting module, whose minimum is a cosine similarity of -1 (lambda 2; 3 in a
    secondary source)."""
    retain_weight: float = 1.0
    """Weight of the retention module (lambda 1; 1 in a secondary source)."""
    consistency_weight: float = 3.0
    """Weight of the consistency module (lambda 3; 3 in a secondary source)."""
    consistency: Literal["similarity", "embedding"] = "similarity"
    """Dimension of the consistency module's softmax: the similarities within the batch, or the
    embedding as the paper's text says, which gives a few thousandths even for opposite vectors."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `forget`, `retain` and `consistency`."""
        forget, retain = student(batch.forget), student(batch.retain)
        original = batch.retain.original
        if self.consistency == "similarity":
            change = similarity_divergence(student, original, retain)
        else:
            change = divergence(original.image, retain.image)
            change = change + divergence(original.text, retain.text)
        _, retention = contrast(student, None, retain)
        return {
            "forget": self.forget_weight * (forget.image * forget.text).sum(-1).mean(),
            "retain": self.retain_weight * retention.mean(),
            "consistency": self.consistency_weight * change,
        }
