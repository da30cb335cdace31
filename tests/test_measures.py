"""CLIP-side measures against values calculated by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, tensor

from erase_sd.data.pair import CaptionPair, ConceptSet
from erase_sd.evaluation import drift
from erase_sd.evaluation.embedders import Embedder
from erase_sd.evaluation.galleries import Gallery, GalleryImage
from erase_sd.evaluation.measures import (
    DRIFT_GROUPS,
    average_precision,
    class_features,
    drift_by_group,
    estimate_mean,
    estimate_share,
    ranks,
)
from erase_sd.evaluation.retrieval import retrieval, unique_captions
from erase_sd.evaluation.zero_shot import zero_shot


class FixedEmbedder:
    """An embedder with a fixed feature for each text."""

    def __init__(self, features: dict[str, list[float]]) -> None:
        self.features = features

    def embed_texts(self, texts: list[str]) -> Tensor:
        return tensor([self.features[text] for text in texts])


class NoLimit:
    """A context length that every text fits."""

    def fitting(self, texts: list[str]) -> list[bool]:
        return [True] * len(texts)


def gallery_of(
    *images: tuple[ConceptSet, str | None, tuple[str, ...]], forget_classes: tuple[str, ...] = ()
) -> Gallery:
    """Images of a set with a class and captions, which mention the concept if they hold "apple"."""
    return Gallery(
        kind="", folder=Path(), digest="", forget_classes=frozenset(forget_classes),
        images=tuple(
            GalleryImage(
                cast(Any, None), name, label=label, pairs=tuple(
                    CaptionPair(
                        caption=text, image="", mentions=("apple",) * ("apple" in text),
                        set=name, split="held-out",
                    )
                    for text in captions
                ),
            )
            for name, label, captions in images
        ),
    )  # fmt: skip


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


def test_zero_shot_measures_separate_the_classes_to_forget_from_the_others() -> None:
    gallery = gallery_of(
        ("forget", "apple", ()), ("forget", "apple", ()), ("retain", None, ()), ("retain", "cat", ()),
        ("retain", "dog", ()), forget_classes=("apple",),
    )  # fmt: skip
    # Classes are apple, cat, dog, and so are the axes. The second apple is nearest to the dog, the
    # image without a class counts for nothing, and the cat ties with the dog, so that it is not found.
    images = tensor([[1, 0, 0], [0.4, 0, 0.6], [1, 0, 0], [0, 0.5, 0.5], [0, 0.1, 0.55]])
    prompts = [["an apple"], ["a cat"], ["a dog"]]
    rows = zip(prompts, torch.eye(3).tolist(), strict=True)
    embedder = cast(Embedder, FixedEmbedder({text: row for [text], row in rows}))
    estimates = zero_shot(embedder, gallery, prompts, images)
    assert {key: (e.value, e.n) for key, e in estimates.items()} == {
        ("zero_shot_prediction", "forget"): (1 / 2, 2),
        ("zero_shot_prediction", "retain"): (1 / 2, 2),
        ("zero_shot_retrieval", "forget"): (1.0, 1),  # both apples above all other images
        ("zero_shot_retrieval", "retain"): (3 / 4, 2),  # the cat first; the dog below an apple
    }


def test_retrieval_separates_the_queries_by_set_and_answers_with_both() -> None:
    gallery = gallery_of(
        ("forget", None, ("an apple", "a table")), ("retain", None, ("a dog",)),
        ("retain", None, ("a cat", "a table")), ("retain", None, ()),
    )  # fmt: skip
    captions = unique_captions(gallery, cast(Any, NoLimit()))
    assert captions and captions.texts == ["an apple", "a table", "a dog", "a cat"]
    # The dog's caption is nearest to the image of the apple. The table's is nearest to that of the cat:
    # correct, since both images have it. The image without captions is no query, but the nearest
    # answer to the cat's.
    images = torch.eye(4)
    embedder = FixedEmbedder({
        "an apple": [0.9, 0, 0, 0], "a table": [0.1, 0, 0.8, 0], "a dog": [0.6, 0.5, 0, 0],
        "a cat": [0, 0, 0.2, 0.3],
    })  # fmt: skip
    estimates = retrieval(cast(Embedder, embedder), gallery, captions, images)
    first = {key: (e.value, e.n) for key, e in estimates.items() if key[0].endswith("r1")}
    assert first == {
        ("image_retrieval_r1", "forget"): (1.0, 2),  # the apple and the table
        ("image_retrieval_r1", "retain"): (1 / 3, 3),  # of the table, the dog and the cat
        ("text_retrieval_r1", "forget"): (1.0, 1),
        ("text_retrieval_r1", "retain"): (1.0, 2),
    }
    assert all(e.value == 1 for key, e in estimates.items() if key[0].endswith("r5"))
    assert {key[0] for key in estimates} == {
        f"{answers}_retrieval_r{k}" for answers in ("image", "text") for k in (1, 5, 10)
    }


def test_drift_is_measured_on_captions_of_the_concept_and_of_retain_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gallery = gallery_of(
        ("forget", "apple", ("an apple", "a fruit", "a table", "two apples")),
        ("retain", "dog", ("a dog", "a table")), forget_classes=("apple",),
    )  # fmt: skip
    captions = unique_captions(gallery, cast(Any, NoLimit()))
    prompts = [["an apple", "the apple"], ["a dog"]]
    # "a fruit" neither mentions the concept nor describes a retain image.
    assert drift.drift_texts(gallery, captions, prompts) == {
        "forget": ["an apple", "two apples"], "retain": ["a table", "a dog"],
    }  # fmt: skip
    assert drift.drift_texts(gallery, None, prompts) == {
        "forget": ["an apple", "the apple"], "retain": ["a dog"],
    }  # fmt: skip
    monkeypatch.setattr(drift, "MAX_TEXTS", 1)
    assert drift.drift_texts(gallery, captions, prompts) == {
        "forget": ["an apple"], "retain": ["a table"],
    }  # fmt: skip
