"""How much of the concept remains in the U-Net's predictions, and how much else is retained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.base import TokenizedPairs
from ..models.denoiser import Denoiser, Noisy, Prompts, rows_of
from .metrics import ErasureMetrics

MOST = 96
"""Images of each set that are measured, each at one timestep."""
BATCH = 16


@dataclass(frozen=True)
class OriginalPredictions:
    """What the metrics need of the original U-Net; the same at every validation."""

    forget: Noisy
    """Noisy latents of images that show a concept."""
    forget_prompts: Prompts
    """Their captions, which mention it."""
    with_concept: Tensor
    """The original's predictions under them, (n, channels, h, w)."""
    without: Tensor
    """Its predictions under the concept-removed captions."""
    retain: Noisy
    """Noisy latents of retain images."""
    retain_prompts: Prompts
    retained: Tensor
    """The original's predictions under their captions."""
    exchanged: Tensor
    """Its predictions under each other's captions."""


def predict_originals(
    original: Denoiser, forget: TokenizedPairs, retain: TokenizedPairs
) -> OriginalPredictions:
    """The original's predictions on at most MOST images of each set.

    Needs one forget caption with a concept-removed counterpart, and two retain captions.
    """
    generator = torch.Generator().manual_seed(0)
    mentions = _spread(torch.nonzero(forget.mask.sum(1)).flatten())
    rows = _spread(torch.arange(len(retain)))
    noisy, retain_noisy = (
        original.add_noise(original.latents([pairs.paths[n] for n in some.tolist()]), generator)[0]
        for pairs, some in ((forget, mentions), (retain, rows))
    )
    prompts = original.encode(forget.ids[mentions])
    removed = original.encode(forget.concept_removed_ids[mentions])
    retained = original.encode(retain.ids[rows])
    return OriginalPredictions(
        forget=noisy,
        forget_prompts=prompts,
        with_concept=_predictions(original, noisy, prompts),
        without=_predictions(original, noisy, removed),
        retain=retain_noisy,
        retain_prompts=retained,
        retained=_predictions(original, retain_noisy, retained),
        exchanged=_predictions(
            original, retain_noisy, {name: t.roll(1, 0) for name, t in retained.items()}
        ),
    )


def unet_metrics(student: Denoiser, original: OriginalPredictions) -> ErasureMetrics:
    """Metrics of the student's U-Net; both are 1 before unlearning.

    Mentioning the concept changes the original's prediction; the residual is the share of that change that
    is left in the student's, below 0 if the concept is repelled. The fidelity is 1 minus the mean squared
    change of the retain captions' predictions, relative to the change that another caption makes.
    """
    change = original.with_concept - original.without
    now = _predictions(student, original.forget, original.forget_prompts) - original.without
    retained = _predictions(student, original.retain, original.retain_prompts)
    other = (original.exchanged - original.retained).square().mean()
    return ErasureMetrics(
        residual_concept_similarity=float((now * change).sum() / change.square().sum()),
        retained_fidelity=1 - float((retained - original.retained).square().mean() / other),
    )


@torch.no_grad()
def _predictions(denoiser: Denoiser, noisy: Noisy, prompts: Prompts) -> Tensor:
    parts = (slice(start, start + BATCH) for start in range(0, len(noisy.times), BATCH))
    return torch.cat([denoiser.predict(noisy.rows(some), rows_of(prompts, some)) for some in parts])


def _spread(rows: Tensor) -> Tensor:
    """At most MOST of the rows, evenly spread."""
    return rows[torch.linspace(0, len(rows) - 1, min(MOST, len(rows))).long()]
