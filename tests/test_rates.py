"""Rates, their intervals and tests, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from erase_sd.data.concept import Concept
from erase_sd.errors import SettingError
from erase_sd.scoring.rates import (
    THRESHOLD,
    Group,
    Pair,
    as_json,
    mcnemar,
    pairs_of,
    rows_of,
    wilson,
)

APPLE = Concept("apple", keep_senses=("apple laptop",))
NAMES = ("person", "dog", "apple", "laptop")
Boxes = dict[str, float]


def drawn(
    prompt: str, original: Boxes, erased: Boxes, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    images, detections = [], {}
    for arm, boxes in (("original", original), ("erased", erased)):
        file = f"{arm}/{prompt}-{seed}.png"
        images.append(
            {"file": file, "prompts": "a.txt", "prompt": prompt, "seed": seed, "arm": arm}
        )
        detections[file] = [{"class": name, "probability": p} for name, p in boxes.items()]
    return images, detections


def pairs(prompt: str, original: Boxes, erased: Boxes, *others: Concept) -> list[Pair]:
    images, detections = drawn(prompt, original, erased)
    return pairs_of(images, detections, APPLE, "apple", [APPLE, *others], NAMES)


# z = 1.959964, z^2 = 3.841459. Centre (p + z^2/2n) / (1 + z^2/n), half width
# z sqrt(p (1 - p)/n + z^2/4n^2) / (1 + z^2/n).
# 8 of 10: (0.8 + 0.192073) / 1.384146 = 0.716740;
#          1.959964 * sqrt(0.016 + 0.009604) / 1.384146 = 0.226578.
# 0 of 10: both are z^2/2n / (1 + z^2/n), so 0 to 3.841459 / 13.841459 = 0.277533.
# 10 of 10: mirrored, 10 / 13.841459 = 0.722467 to 1.
# 1 of 1: 1 / 4.841459 = 0.206549 to 1.
@pytest.mark.parametrize(
    ("found", "n", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0, 0.277533), (10, 10, 0.722467, 1), (1, 1, 0.206549, 1)],
)
def test_the_interval_is_wilsons(found: int, n: int, low: float, high: float) -> None:
    assert wilson(found, n) == pytest.approx((low, high), abs=2e-6)


# Twice the smaller tail of a fair coin:
# 5 and 0: 2 * 1 / 2^5 = 0.0625;  6 and 0: 2 * 1 / 2^6 = 0.03125
# 5 and 1: 2 * (1 + 6) / 2^6 = 0.21875;  10 and 2: 2 * (1 + 12 + 66) / 2^12 = 0.038574
# 3 and 3: the tails overlap, 1;  none: nothing changed, 1
@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [(5, 0, 0.0625), (6, 0, 0.03125), (5, 1, 0.21875), (10, 2, 158 / 4096), (3, 3, 1), (0, 0, 1)],
)
def test_the_p_value_is_mcnemars_exact_one(lost: int, gained: int, p_value: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p_value, rel=1e-9)
    assert mcnemar(gained, lost) == pytest.approx(p_value, rel=1e-9)


def test_a_prompt_with_the_concept_looks_for_it_and_for_what_else_it_names() -> None:
    found = pairs("a dog and an apple", {"apple": 0.9, "dog": 0.8, "person": 0.7}, {"dog": 0.6})
    assert found == [
        Pair("a dog and an apple", "target", "apple", 0.9, 0.0),
        Pair("a dog and an apple", "retained_same", "dog", 0.8, 0.6),
    ]


def test_a_prompt_without_the_concept_is_retained_other() -> None:
    assert pairs("a dog", {"dog": 0.8, "apple": 0.7}, {}) == [
        Pair("a dog", "retained_other", "dog", 0.8, 0.0)
    ]


def test_a_kept_sense_is_retained_and_no_target() -> None:
    assert pairs("an apple laptop", {"laptop": 0.8}, {"laptop": 0.7}) == [
        Pair("an apple laptop", "retained_other", "laptop", 0.8, 0.7)
    ]


def test_another_erased_concept_is_not_retained() -> None:
    found = pairs("a dog, an apple and a man", {}, {}, Concept("dog"))
    assert [(p.group, p.name) for p in found] == [("target", "apple"), ("retained_same", "person")]


def test_what_stands_beside_another_erased_concept_is_not_elsewhere() -> None:
    assert pairs("a dog on a chair", {"dog": 0.8}, {}, Concept("chair")) == []
    assert len(pairs("a dog on a couch", {"dog": 0.8}, {}, Concept("chair"))) == 1


def test_a_prompt_that_names_no_class_gives_no_pair() -> None:
    assert pairs("a sunset", {"dog": 0.8}, {"dog": 0.8}) == []


def test_the_most_probable_box_counts_and_each_class_once() -> None:
    images, detections = drawn("two dogs and a dog", {"dog": 0.3}, {})
    detections[images[0]["file"]].extend({"class": "dog", "probability": p} for p in (0.75, 0.5))
    found = pairs_of(images, detections, APPLE, "apple", [APPLE], NAMES)
    assert found == [Pair("two dogs and a dog", "retained_other", "dog", 0.75, 0.0)]


def test_each_seed_is_a_pair_of_its_own() -> None:
    images, detections = drawn("a dog", {"dog": 0.5}, {}, seed=1)
    more, boxes = drawn("a dog", {}, {"dog": 0.6}, seed=2)
    found = pairs_of([*images, *more], detections | boxes, APPLE, "apple", [APPLE], NAMES)
    assert [(p.original, p.erased) for p in found] == [(0.5, 0.0), (0.0, 0.6)]


def test_a_class_the_detector_lacks_is_refused_with_near_names() -> None:
    with pytest.raises(SettingError) as error:
        pairs_of([], {}, APPLE, "aple", [APPLE], NAMES)
    assert "--detector-class aple" in str(error.value)
    assert "near: apple" in str(error.value)


@pytest.mark.parametrize("arm", [0, 1])
def test_a_missing_arm_is_refused_by_prompt_and_seed(arm: int) -> None:
    images, detections = drawn("a dog", {}, {}, seed=4)
    with pytest.raises(SettingError, match="'a dog', seed 4: one arm is missing"):
        pairs_of([images[arm]], detections, APPLE, "apple", [APPLE], NAMES)


def seen(group: Group, *values: tuple[float, float], name: str = "apple") -> list[Pair]:
    return [Pair("an apple", group, name, original, erased) for original, erased in values]


def test_rows_hold_rates_their_difference_and_its_p_value() -> None:
    # 7 of 8 before, 1 of 8 after; 6 are lost, none gained: p = 2 / 2^6
    chosen = seen("target", *[(0.9, 0.1)] * 6, (0.9, 0.9), (0.1, 0.1))
    before, after = rows_of("run", "apple", chosen)
    assert (before.arm, before.rate, before.found, before.n) == ("original", 7 / 8, 7, 8)
    assert (after.arm, after.rate, after.found, after.n) == ("erased", 1 / 8, 1, 8)
    assert (before.low, before.high) == wilson(7, 8)
    assert (after.low, after.high) == wilson(1, 8)
    assert (before.difference, before.p_value) == (None, None)
    assert after.difference == pytest.approx(-6 / 8)
    assert after.p_value == pytest.approx(1 / 32)
    assert before.threshold == after.threshold == THRESHOLD


def test_a_difference_nets_what_is_lost_against_what_is_gained() -> None:
    # 1 lost, 2 gained of 4: 1/4 before, 2/4 after; p = min(1, 2 * (1 + 3) / 2^3) = 1
    _, after = rows_of("run", "apple", seen("target", (0.9, 0), (0, 0.9), (0, 0.9), (0, 0)))
    assert after.difference == pytest.approx(1 / 4)
    assert after.p_value == pytest.approx(1)


@pytest.mark.parametrize(("threshold", "before", "after"), [(0.1, 3, 3), (0.25, 3, 2), (0.5, 2, 0)])
def test_a_box_counts_from_the_threshold_on(threshold: float, before: int, after: int) -> None:
    chosen = seen("target", (0.5, 0.1), (0.9, 0.25), (0.25, 0.49), (0.09, 0))
    rows = rows_of("run", "apple", chosen, threshold)
    assert [row.found for row in rows] == [before, after]
    assert [row.threshold for row in rows] == [threshold] * 2


def test_each_group_that_has_pairs_has_two_rows() -> None:
    chosen = seen("retained_other", (0.9, 0.9), name="dog") + seen("target", (0.9, 0))
    rows = rows_of("run", "apple", chosen)
    assert [(r.group, r.arm, r.n) for r in rows] == [
        ("target", "original", 1), ("target", "erased", 1),
        ("retained_other", "original", 1), ("retained_other", "erased", 1),
    ]  # fmt: skip
    assert rows_of("run", "apple", []) == []


def test_rows_by_class_part_a_group() -> None:
    chosen = seen("retained_same", (0.9, 0.9), (0.9, 0), name="dog")
    chosen += seen("retained_same", (0.9, 0.9), name="cat")
    rows = rows_of("run", "apple", chosen, by_class=True)
    assert [(r.name, r.arm, r.found, r.n) for r in rows] == [
        ("cat", "original", 1, 1), ("cat", "erased", 1, 1),
        ("dog", "original", 2, 2), ("dog", "erased", 1, 2),
    ]  # fmt: skip


def test_a_row_names_its_class_only_where_it_is_of_one() -> None:
    chosen = seen("target", (0.9, 0))
    assert "name" not in as_json(rows_of("run", "apple", chosen)[0])
    assert as_json(rows_of("run", "apple", chosen, by_class=True)[0])["name"] == "apple"
