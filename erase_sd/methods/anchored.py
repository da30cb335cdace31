"""Anchored CLIPErase (this project): tells every token state what it should be instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Batch, Method, Student


@dataclass(frozen=True, kw_only=True)
class AnchoredCLIPErase(Method):
    """This project, after Yang et al. (arXiv 2410.23330): caption minus concept, token retention.

    Differs: Stable Diffusion reads all token states, and the paper's terms see only the pooled one.
    Driven below zero, the paper's dot product pushes a caption toward whatever lies opposite, and an
    apple turns into a chair. Here a caption with the concept is pulled to the original's states of
    the same caption without it, and the other captions are held to their own.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"states"})
    rate: ClassVar[float] = 1e-3
    forget_threshold: ClassVar[float | None] = 0.1
    retain_floor: ClassVar[float | None] = 0.9
    anchor_weight: float = 50.0
    """Of the squared distance to the states of the caption without the concept (ours)."""
    token_weight: float = 50.0
    """Of the squared distance of the retain captions' states to the original's (ours: as the other)."""
    forget_weight: float = 0.0
    """Of the paper's forgetting module, stopped at 0: strangers' similarity is forgotten enough (ours: off)."""

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Two scalars, three with a `forget_weight`."""
        forget, retain = student(batch.forget), student(batch.retain)
        away = (forget.states - batch.reduced.states).square().mean(-1)  # (n, tokens)
        mask = batch.reduced.mask
        terms = {
            "anchor": self.anchor_weight * (away * mask).sum() / mask.sum().clamp(min=1),
            "token": self.token_weight
            * (retain.states - batch.retain.original.states).square().mean(),
        }
        if self.forget_weight:
            likeness = (forget.image * forget.text).sum(-1).clamp(min=0)
            terms["forget"] = self.forget_weight * likeness.mean()
        return terms
