"""CLIP-side measures against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, tensor

from erase_sd.evaluation.measures import (
    DRIFT_GROUPS,
    average_precision,
    class_features,
    drift,
    mean,
    ranks,
    share,
)


def test_a_rank_is_one_more_than_the_wrong_answers_before_the_best_right_one() -> None:
    similarity = tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1]])
    right = tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    assert ranks(similarity, right).tolist() == [1, 2, 3]


def test_of_several_right_answers_the_best_counts_and_the_others_push_nothing_back() -> None:
    # Scores 4 3 2 1; right are the second and the fourth: one wrong answer stands before the second.
    similarity = tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    right = tensor([[0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    assert ranks(similarity, right).tolist() == [2, 1]


def test_a_tie_with_a_wrong_answer_is_no_hit_and_with_a_right_one_costs_nothing() -> None:
    similarity = torch.ones(2, 4)
    right = tensor([[0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    assert ranks(similarity, right).tolist() == [4, 1]


def test_an_image_with_several_captions_is_found_by_any_and_each_caption_finds_its_one() -> None:
    # Two images, five captions of the first and one of the second, which the first draws to itself.
    captions, images = tensor([[1.0, 0.0]] * 5 + [[0.8, 0.6]]), torch.eye(2)
    own = tensor([[1, 0]] * 5 + [[0, 1]]).bool()
    assert ranks(captions @ images.T, own).tolist() == [1] * 5 + [2]
    assert ranks(images @ captions.T, own.T).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("scores", "right", "expected"),
    [
        # Right at places 1 and 3: (1/1 + 2/3) / 2.
        ([4, 3, 2, 1], [1, 0, 1, 0], 5 / 6),
        # Right at places 2 and 4: (1/2 + 2/4) / 2.
        ([4, 3, 2, 1], [0, 1, 0, 1], 1 / 2),
        # Right before all wrong.
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        # All the same: two of the four are right.
        ([1, 1, 1, 1], [1, 0, 1, 0], 1 / 2),
        # The first right one shares its place with a wrong one, 1/2; the second makes 2 of 3.
        ([2, 2, 1, 0], [1, 0, 1, 0], (1 / 2 + 2 / 3) / 2),
    ],
)
def test_average_precision(scores: list[int], right: list[int], expected: float) -> None:
    found = average_precision(tensor(scores).float(), tensor(right).bool())
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_class_is_the_mean_of_its_prompts_made_unit_norm_again() -> None:
    # (1, 0) and (0, 1) have the mean (0.5, 0.5); (0.6, 0.8) twice stays.
    prompts = tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.6, 0.8]]])
    half = 0.5**0.5
    torch.testing.assert_close(class_features(prompts), tensor([[half, half], [0.6, 0.8]]))


def test_drift_is_the_mean_cosine_distance_of_each_groups_tokens() -> None:
    start, subject, words, end, padding = range(5)
    before = tensor([[1.0, 0.0]]).expand(6, 2)[None]
    # Distances: 0, 1 (turned by 90 degrees), 2 (turned round), 0.4 (cosine 0.6), 1, 0.
    after = tensor([[[2, 0], [0, 3], [-1, 0], [0.6, 0.8], [0, 1], [1, 0]]])
    groups = tensor([[start, subject, subject, words, end, padding]])
    assert drift(before, after, groups)[0].tolist() == pytest.approx([0, 1.5, 0.4, 1, 0], abs=1e-6)


def test_a_text_without_a_token_of_a_group_has_no_drift_there() -> None:
    states = torch.ones(1, 2, 3)
    got = drift(states, states, tensor([[0, 3]]))[0]
    assert got.isnan().tolist() == [name not in ("start", "end") for name in DRIFT_GROUPS]


def test_a_share_has_wilsons_interval() -> None:
    got = share(tensor([True] * 8 + [False] * 2))  # the numbers of tests/test_rates.py
    assert (got.value, got.n) == (0.8, 10)
    assert (got.low, got.high) == pytest.approx((0.490162, 0.943318), abs=2e-6)


# 0.2 and 0.4: deviation sqrt(0.02), error 0.1, half width 0.1959964 about 0.3.
# 0.9, 1, 1: deviation 0.057735, error 1/30, half width 0.0653321 about 0.966667, cut off at 1.
@pytest.mark.parametrize(
    ("values", "value", "low", "high"),
    [([0.2, 0.4], 0.3, 0.1040036, 0.4959964), ([0.9, 1.0, 1.0], 0.966667, 0.901335, 1.0)],
)
def test_a_mean_has_the_interval_of_its_standard_error(
    values: list[float], value: float, low: float, high: float
) -> None:
    got = mean(tensor(values), 1.0)
    assert (got.value, got.low, got.high) == pytest.approx((value, low, high), abs=1e-6)


def test_one_value_alone_has_no_interval() -> None:
    got = mean(tensor([0.25]), 1.0)
    assert (got.value, got.n, got.low, got.high) == (0.25, 1, None, None)


def test_a_collapsed_model_finds_nothing_and_ranks_no_class_first() -> None:
    same = torch.nn.functional.normalize(torch.ones(30, 8), dim=-1)
    own: Tensor = torch.eye(30).bool()
    assert (ranks(same @ same.T, own) > 10).all()
