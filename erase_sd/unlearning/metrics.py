"""How much of the concept remains in the captions, and how much of everything else is retained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.base import TokenizedPairs
from ..models.clip import Clip


@dataclass(frozen=True, kw_only=True)
class ErasureMetrics:
    """Both are 1 before unlearning."""

    residual_concept_similarity: float
    """Additional similarity to its image that a caption gains by mentioning the concept, relative to
    the original model's; 0 is erased, below 0 repelled."""
    retained_fidelity: float
    """1 minus the mean squared change of the retain captions' hidden states over their variance."""

    @property
    def finite(self) -> bool:
        """Whether neither is NaN or infinite."""
        return all(map(math.isfinite, (self.residual_concept_similarity, self.retained_fidelity)))


@dataclass(frozen=True)
class OriginalEncodings:
    """What the metrics need of the original model; the same at every validation."""

    forget_ids: Tensor
    """Captions that mention a concept, (n, tokens)."""
    image: Tensor
    """Features of their images, (n, projection)."""
    before: Tensor
    """Mean similarity of captions and images."""
    removed: Tensor
    """Mean similarity of the concept-removed captions and the images."""
    retain_ids: Tensor
    hidden_states: Tensor
    """Hidden states of the retain captions, (m, tokens, width)."""
    variance: Tensor
    """Their mean squared distance to the mean caption."""


@torch.no_grad()
def encode_originals(
    original: Clip, forget: TokenizedPairs, retain: TokenizedPairs, most: int = 512
) -> OriginalEncodings:
    """The original's encodings of at most `most` captions of each set.

    Needs one forget caption with a concept-removed counterpart, and two retain captions.
    """
    assert forget.image is not None
    mentions = torch.nonzero(forget.mask.sum(1)).flatten()[:most]
    image = forget.image[mentions].to(original.device)
    before, _ = original.encode_texts(forget.ids[mentions])
    removed, _ = original.encode_texts(forget.concept_removed_ids[mentions])
    rows = torch.linspace(0, len(retain) - 1, min(most, len(retain))).long()
    _, hidden_states = original.encode_texts(retain.ids[rows])
    return OriginalEncodings(
        forget_ids=forget.ids[mentions],
        image=image,
        before=(image * before).sum(-1).mean(),
        removed=(image * removed).sum(-1).mean(),
        retain_ids=retain.ids[rows],
        hidden_states=hidden_states,
        variance=(hidden_states - hidden_states.mean(0)).square_().mean(),
    )


@torch.no_grad()
def erasure_metrics(clip: Clip, original: OriginalEncodings) -> ErasureMetrics:
    """Metrics of `clip` on the captions that the original has encoded."""
    after, _ = clip.encode_texts(original.forget_ids)
    base = original.removed
    residual = ((original.image * after).sum(-1).mean() - base) / (original.before - base)
    _, now = clip.encode_texts(original.retain_ids)
    change = now.sub_(original.hidden_states).square_().mean()
    fidelity = 1 - change / original.variance
    return ErasureMetrics(
        residual_concept_similarity=float(residual), retained_fidelity=float(fidelity)
    )
