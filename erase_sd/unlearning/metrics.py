"""How much of the concept remains in the captions, and how much of everything else is retained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

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
        return math.isfinite(self.residual_concept_similarity) and math.isfinite(
            self.retained_fidelity
        )


@torch.no_grad()
def erasure_metrics(
    clip: Clip, original: Clip, forget: TokenizedPairs, retain: TokenizedPairs, most: int = 512
) -> ErasureMetrics:
    """Metrics on at most `most` captions of each set.

    Needs one forget caption with a concept-removed counterpart, and two retain captions.
    """
    assert forget.image is not None
    mentions = torch.nonzero(forget.mask.sum(1)).flatten()[:most]
    image = forget.image[mentions].to(clip.device)
    after, _ = clip.encode_texts(forget.ids[mentions])
    before, _ = original.encode_texts(forget.ids[mentions])
    removed, _ = original.encode_texts(forget.concept_removed_ids[mentions])
    base = (image * removed).sum(-1).mean()
    residual = ((image * after).sum(-1).mean() - base) / ((image * before).sum(-1).mean() - base)

    rows = torch.linspace(0, len(retain) - 1, min(most, len(retain))).long()
    _, was = original.encode_texts(retain.ids[rows])
    _, now = clip.encode_texts(retain.ids[rows])
    fidelity = 1 - (now - was).square().mean() / (was - was.mean(0)).square().mean()
    return ErasureMetrics(
        residual_concept_similarity=float(residual), retained_fidelity=float(fidelity)
    )
