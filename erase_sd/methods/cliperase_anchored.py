"""Anchored CLIPErase (this project): every hidden state has a target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import Batch, ConceptRemoved, Encodings, Method, Need, Student, Terms


@dataclass(frozen=True, kw_only=True)
class AnchoredCLIPErase(Method):
    """This project, after Yang et al. (arXiv 2410.23330): concept-removed captions as targets.

    Differs: Stable Diffusion reads all hidden states, but the paper's terms act on the pooled one
    only. The paper's dot product also has no useful minimum: it pushes a caption toward whatever lies
    opposite, and an apple turns into a chair. Here, a forget caption is pulled to the original's
    hidden states of the same caption without the concept, and a retain caption is held at its own.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"hidden_states"})
    erases_mentions: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 1e-3
    forget_threshold: ClassVar[float | None] = 0.1
    retain_floor: ClassVar[float | None] = 0.9
    anchor_weight: float = 50.0
    """Weight of the mean squared distance between the forget captions' hidden states and those of
    the concept-removed captions (ours)."""
    token_weight: float = 50.0
    """Weight of the mean squared change of the retain captions' hidden states (ours: equal to
    anchor_weight)."""
    forget_weight: float = 0.0
    """Weight of the paper's forgetting module, with similarities below 0 clamped to 0 (ours: off)."""

    def loss(self, student: Student, batch: Batch) -> Iterator[Terms]:
        """The term `token`; then, or together with it, `anchor`, with `forget` if it has a weight."""
        assert batch.concept_removed is not None
        if student.joins:
            forget, retain = student.both(batch)
            yield self._kept(retain, batch) | self._forgotten(forget, batch.concept_removed)
            return
        yield self._kept(student(batch.retain), batch)
        # After the larger batch, because its freed memory holds the smaller one's.
        yield self._forgotten(student(batch.forget), batch.concept_removed)

    def _kept(self, retain: Encodings, batch: Batch) -> Terms:
        change = retain.hidden_states - batch.retain.original.hidden_states
        return {"token": self.token_weight * change.square().mean()}

    def _forgotten(self, forget: Encodings, target: ConceptRemoved) -> Terms:
        distance = (forget.hidden_states - target.hidden_states).square().mean(-1)  # (n, tokens)
        total = self.anchor_weight * (distance * target.mask).sum()
        terms = {"anchor": total / target.mask.sum().clamp(min=1)}
        if self.forget_weight:
            similarity = (forget.image * forget.text).sum(-1).clamp(min=0)
            terms["forget"] = self.forget_weight * similarity.mean()
        return terms
