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
    """Captions of one token each; the first is of the image (1, 0), the others are of (0, 1)."""
    pair = CaptionPair(caption="", image="a.jpg", mentions=(), set="forget", split="validation")
    return TokenizedPairs(
        pairs=[pair] * len(ids),
        ids=torch.tensor(ids)[:, None],
        image=torch.eye(2)[[0, *[1] * (len(ids) - 1)]],
        paths=[],
        concept_removed_ids=torch.tensor(removed)[:, None],
        source=torch.zeros(len(ids), 1, dtype=torch.long),
        mask=torch.tensor(mask)[:, None],
        mention_end=torch.zeros(len(ids), dtype=torch.long),
    )


def test_the_metrics_match_hand_computed_values() -> None:
    # Captions 1 and 5 have similarities 0.8 and 0.6 to their images, 0.2 without the concept (captions 2
    # and 6), and now 0.35 and 0.25: a fifth of the 0.5 that the concept added on average remains.
    # Caption 9 mentions nothing and is ignored.
    forget = tokenized([1, 9, 5], [2, 9, 6], [1.0, 0.0, 1.0])
    # The retain hidden states are (3, 1) and (1, 1), so their variance is 1/2; the first moved by
    # 0.4, so the mean squared change is 0.16 / 4.
    retain = tokenized([3, 4], [3, 4], [0.0, 0.0])
    before = {
        1: [0.8, 0.6], 2: [0.2, 0.0], 3: [3.0, 1.0], 4: [1.0, 1.0], 5: [0.8, 0.6], 6: [0.0, 0.2],
    }  # fmt: skip
    after = before | {1: [0.35, 0.0], 3: [3.0, 1.4], 5: [0.0, 0.25]}
    original, student = (cast(Clip, FixedClip(features)) for features in (before, after))
    encodings = encode_originals(original, forget, retain)
    metrics = erasure_metrics(student, encodings)
    assert metrics.residual_concept_similarity == pytest.approx(0.2)
    assert metrics.retained_fidelity == pytest.approx(1 - 0.04 / 0.5)
    unchanged = erasure_metrics(original, encodings)
    assert unchanged == ErasureMetrics(residual_concept_similarity=1.0, retained_fidelity=1.0)


def test_of_many_captions_the_first_and_evenly_spread_ones_are_measured() -> None:
    forget = tokenized([1, 2, 3], [4, 4, 4], [0.0, 1.0, 1.0])
    retain = tokenized([5, 6, 7], [5, 6, 7], [0.0, 0.0, 0.0])
    clip = cast(Clip, FixedClip({i: [float(i), 0.0] for i in range(1, 8)}))
    encodings = encode_originals(clip, forget, retain, most=2)
    assert encodings.forget_ids.flatten().tolist() == [2, 3]
    assert encodings.retain_ids.flatten().tolist() == [5, 7]
    assert encode_originals(clip, forget, retain, most=1).forget_ids.flatten().tolist() == [2]


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_metrics_with_a_nan_or_infinite_value_are_not_finite(values: tuple[float, float]) -> None:
    residual, fidelity = values
    metrics = ErasureMetrics(residual_concept_similarity=residual, retained_fidelity=fidelity)
    assert not metrics.finite
