"""CLIP-side measures against values calculated by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, tensor

from erase_sd.evaluation.measures import (
    DRIFT_GROUPS,
    average_precision,
    class_features,
    drift_by_group,
    estimate_mean,
    estimate_share,
    ranks,
)


def test_rank_counts_the_wrong_answers_above_the_best_correct_one() -> None:
    similarity = tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1]])
    correct = tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    assert ranks(similarity, correct).tolist() == [1, 2, 3]


def test_rank_is_that_of_the_best_correct_answer_and_ignores_the_other_correct_ones() -> None:
    # Scores 4 3 2 1; the second and fourth are correct: one wrong answer scores above the second.
    similarity = tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    correct = tensor([[0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    assert ranks(similarity, correct).tolist() == [2, 1]


def test_wrong_answer_with_the_same_score_ranks_first() -> None:
    similarity = torch.ones(2, 4)
    correct = tensor([[0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    assert ranks(similarity, correct).tolist() == [4, 1]


def test_any_caption_of_an_image_retrieves_it() -> None:
    # Two images: five captions of the first, one of the second that is closer to the first.
    captions, images = tensor([[1.0, 0.0]] * 5 + [[0.8, 0.6]]), torch.eye(2)
    own = tensor([[1, 0]] * 5 + [[0, 1]]).bool()
    assert ranks(captions @ images.T, own).tolist() == [1] * 5 + [2]
    assert ranks(images @ captions.T, own.T).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("scores", "correct", "expected"),
    [
        # Correct at ranks 1 and 3: (1/1 + 2/3) / 2.
        ([4, 3, 2, 1], [1, 0, 1, 0], 5 / 6),
        # Correct at ranks 2 and 4: (1/2 + 2/4) / 2.
        ([4, 3, 2, 1], [0, 1, 0, 1], 1 / 2),
        # All correct answers above all wrong ones.
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        # All tied: two of the four are correct.
        ([1, 1, 1, 1], [1, 0, 1, 0], 1 / 2),
        # The first correct answer is tied with a wrong one, 1/2; the second makes 2 of 3.
        ([2, 2, 1, 0], [1, 0, 1, 0], (1 / 2 + 2 / 3) / 2),
    ],
)
def test_average_precision_counts_tied_answers_together(
    scores: list[int], correct: list[int], expected: float
) -> None:
    precision = average_precision(tensor(scores).float(), tensor(correct).bool())
    assert precision == pytest.approx(expected, abs=1e-6)


def test_class_feature_is_the_normalized_mean_of_its_prompts() -> None:
    # (1, 0) and (0, 1) have the mean (0.5, 0.5); (0.6, 0.8) twice stays as it is.
    prompts = tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.6, 0.8]]])
    half = 0.5**0.5
    torch.testing.assert_close(class_features(prompts), tensor([[half, half], [0.6, 0.8]]))


def test_drift_is_the_mean_cosine_distance_of_the_tokens_in_a_group() -> None:
    start, subject, words, end, padding = range(5)
    before = tensor([[1.0, 0.0]]).expand(6, 2)[None]
    # Distances: 0, 1 (orthogonal), 2 (opposite), 0.4 (cosine 0.6), 1, 0.
    after = tensor([[[2, 0], [0, 3], [-1, 0], [0.6, 0.8], [0, 1], [1, 0]]])
    groups = tensor([[start, subject, subject, words, end, padding]])
    assert drift_by_group(before, after, groups)[0].tolist() == pytest.approx(
        [0, 1.5, 0.4, 1, 0], abs=1e-6
    )


def test_drift_of_a_group_without_tokens_is_nan() -> None:
    hidden_states = torch.ones(1, 2, 3)
    values = drift_by_group(hidden_states, hidden_states, tensor([[0, 3]]))[0]
    assert values.isnan().tolist() == [name not in ("start", "end") for name in DRIFT_GROUPS]


def test_share_has_wilsons_interval() -> None:
    estimate = estimate_share(tensor([True] * 8 + [False] * 2))  # the values of tests/test_rates.py
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.490162, 0.943318), abs=2e-6)


# 0.2 and 0.4: standard deviation sqrt(0.02), error 0.1, half width 0.1959964 around 0.3.
# 0.9, 1, 1: standard deviation 0.057735, error 1/30, half width 0.0653321 around 0.966667, clipped at 1.
@pytest.mark.parametrize(
    ("values", "value", "low", "high"),
    [([0.2, 0.4], 0.3, 0.1040036, 0.4959964), ([0.9, 1.0, 1.0], 0.966667, 0.901335, 1.0)],
)
def test_mean_has_the_clipped_interval_of_its_standard_error(
    values: list[float], value: float, low: float, high: float
) -> None:
    estimate = estimate_mean(tensor(values), 1.0)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (value, low, high), abs=1e-6
    )


def test_mean_of_one_value_has_no_interval() -> None:
    estimate = estimate_mean(tensor([0.25]), 1.0)
    assert (estimate.value, estimate.n, estimate.low, estimate.high) == (0.25, 1, None, None)


def test_model_with_one_feature_for_everything_retrieves_nothing() -> None:
    same = torch.nn.functional.normalize(torch.ones(30, 8), dim=-1)
    own: Tensor = torch.eye(30).bool()
    assert (ranks(same @ same.T, own) > 10).all()
