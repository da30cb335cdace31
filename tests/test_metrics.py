"""Residual concept similarity and retained fidelity against numbers worked out by hand."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from erase_sd.data.pair import CaptionPair
from erase_sd.methods.base import TokenizedPairs
from erase_sd.models.clip import Clip
from erase_sd.unlearning.metrics import ErasureMetrics, encode_originals, erasure_metrics


class FixedClip:
    """A CLIP with a fixed feature, which is also its one hidden state, for each token id."""

    device = torch.device("cpu")

    def __init__(self, features: dict[int, list[float]]) -> None:
        self.features = features

    def encode_texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        text = torch.tensor([self.features[i] for i in ids[:, 0].tolist()])
        return text, text[:, None]


def tokenized(ids: list[int], removed: list[int], mask: list[float]) -> TokenizedPairs:
    """Two captions of one token each, of images (1, 0) and (0, 1)."""
    pair = CaptionPair(caption="", image="a.jpg", mentions=(), set="forget", split="validation")
    return TokenizedPairs(
        pairs=[pair, pair],
        ids=torch.tensor(ids)[:, None],
        image=torch.eye(2),
        paths=[],
        concept_removed_ids=torch.tensor(removed)[:, None],
        source=torch.zeros(2, 1, dtype=torch.long),
        mask=torch.tensor(mask)[:, None],
        mention_end=torch.zeros(2, dtype=torch.long),
    )


def test_the_metrics_match_hand_computed_values() -> None:
    # Caption 1 has similarity 0.8 to its image, 0.2 without the concept (caption 2), and now 0.35: a
    # quarter of the 0.6 that the concept added remains. Caption 9 mentions nothing and is ignored.
    forget = tokenized([1, 9], [2, 9], [1.0, 0.0])
    # The retain hidden states are (1, 0) and (-1, 0), so their variance is 1/2; the first moved by
    # 0.4, so the mean squared change is 0.16 / 4.
    retain = tokenized([3, 4], [3, 4], [0.0, 0.0])
    before = {1: [0.8, 0.6], 2: [0.2, 0.0], 3: [1.0, 0.0], 4: [-1.0, 0.0]}
    after = before | {1: [0.35, 0.0], 3: [1.0, 0.4]}
    original, student = (cast(Clip, FixedClip(features)) for features in (before, after))
    encodings = encode_originals(original, forget, retain)
    metrics = erasure_metrics(student, encodings)
    assert metrics.residual_concept_similarity == pytest.approx(0.25)
    assert metrics.retained_fidelity == pytest.approx(1 - 0.04 / 0.5)
    unchanged = erasure_metrics(original, encodings)
    assert unchanged == ErasureMetrics(residual_concept_similarity=1.0, retained_fidelity=1.0)


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_metrics_with_a_nan_or_infinite_value_are_not_finite(values: tuple[float, float]) -> None:
    residual, fidelity = values
    metrics = ErasureMetrics(residual_concept_similarity=residual, retained_fidelity=fidelity)
    assert not metrics.finite
