"""Rates, their intervals and tests, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from erase_sd.data.concept import Concept
from erase_sd.data.pair import CaptionPair
from erase_sd.data.prompts import read_prompt_file
from erase_sd.errors import RunError, SettingError
from erase_sd.run.measurements import Detection, RateGroup
from erase_sd.run.records import ImageRecord, Variant
from erase_sd.scoring.matching import Match, match_images
from erase_sd.scoring.rates import THRESHOLD, compare_rates
from erase_sd.scoring.stats import mcnemar, wilson
from erase_sd.scoring.table import csv_columns, csv_row, markdown_table, object_of, table_of

APPLE = Concept("apple", keep_senses=("apple laptop",))
NAMES = ("person", "dog", "apple", "laptop", "orange", "couch")
Best = dict[str, float]
"""Probability of each class's best detection."""


def image(
    pair: CaptionPair, variant: Variant, seed: int = 0, text: str | None = None
) -> ImageRecord:
    return ImageRecord(
        file=f"{variant}/{pair.caption}-{seed}.png", variant=variant, pair=pair, prompt_file="p",
        text=pair.caption if text is None else text, seed=seed, steps=2, guidance=7.5, size=64,
        scheduler="DDIMScheduler", sampler=None, dtype="float32",
        weights="", batch=0, batch_key="", sha256="",
    )  # fmt: skip


def detections_of(best: Best) -> list[Detection]:
    return [Detection(name=n, probability=p, box=(0.0, 0.0, 9.0, 9.0)) for n, p in best.items()]


def pair_of(file: str, prompt: str, *concepts: Concept) -> CaptionPair:
    """The pair of a prompt in a file of that name."""
    path = Path(f"{file}.txt")
    path.write_text(f"{prompt}\n")
    [pair] = read_prompt_file(path).pairs(concepts)
    return pair


def matches(
    prompt: str,
    original: Best,
    erased: Best,
    *others: Concept,
    file: str = "apple",
    reference: tuple[str, Best] | None = None,
) -> list[Match]:
    """Matches for "apple" of one prompt; `reference` is the text and what its image shows."""
    pair = pair_of(file, prompt, APPLE, *others)
    images = [image(pair, "original"), image(pair, "erased")]
    best = [original, erased]
    if reference:
        images.append(image(pair, "reference", text=reference[0]))
        best.append(reference[1])
    detections = {i.file: detections_of(b) for i, b in zip(images, best, strict=True)}
    classes = {concept.name: concept.name for concept in (APPLE, *others)}
    return match_images(images, detections, "apple", classes, NAMES, (APPLE, *others))


# z = 1.959964, z^2 = 3.841459. Center (p + z^2/2n) / (1 + z^2/n), half width
# z sqrt(p (1 - p)/n + z^2/4n^2) / (1 + z^2/n).
# 8 of 10: (0.8 + 0.192073) / 1.384146 = 0.716740;
#          1.959964 * sqrt(0.016 + 0.009604) / 1.384146 = 0.226578.
# 0 of 10: both are z^2/2n / (1 + z^2/n), so 0 to 3.841459 / 13.841459 = 0.277533.
# 10 of 10: mirrored, 10 / 13.841459 = 0.722467 to 1.
# 1 of 1: 1 / 4.841459 = 0.206549 to 1.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0, 0.277533), (10, 10, 0.722467, 1), (1, 1, 0.206549, 1)],
)
def test_the_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=2e-6)


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


def test_a_prompt_with_the_concept_counts_for_it_and_for_the_other_classes_it_names() -> None:
    prompt = "a dog and an apple"
    assert matches(prompt, {"apple": 0.9, "dog": 0.8, "person": 0.7}, {"dog": 0.6}) == [
        Match(prompt, "target", "apple", 0.9, 0.0),
        Match(prompt, "retained_same", "dog", 0.8, 0.6),
    ]


def test_a_prompt_without_the_concept_is_retained_other() -> None:
    assert matches("a dog", {"dog": 0.8, "apple": 0.7}, {}) == [
        Match("a dog", "retained_other", "dog", 0.8, 0.0)
    ]


def test_a_kept_sense_is_retained_and_not_a_target() -> None:
    assert matches("an apple laptop", {"laptop": 0.8}, {"laptop": 0.7}) == [
        Match("an apple laptop", "retained_other", "laptop", 0.8, 0.7)
    ]


def test_another_erased_concept_is_not_retained() -> None:
    both = matches("a dog, an apple and a man", {}, {}, Concept("dog"))
    assert [(m.group, m.class_name) for m in both] == [
        ("target", "apple"), ("retained_same", "person"),
    ]  # fmt: skip


def test_a_class_that_a_synonym_names_is_not_retained() -> None:
    prompt = "a dog, an apple and an orange"
    puppy = Concept("puppy", ("dog",))
    assert [(m.group, m.class_name) for m in matches(prompt, {}, {}, puppy)] == [
        ("target", "apple"), ("retained_same", "orange"),
    ]  # fmt: skip


def test_a_plain_prompt_of_another_erased_concept_only_is_left_to_that_concept() -> None:
    assert matches("a dog on a chair", {"dog": 0.8}, {}, Concept("chair")) == []
    assert matches("a dog on a couch", {"dog": 0.8}, {}, Concept("chair")) != []


def test_the_detectors_class_of_a_concept_is_its_target_and_never_retained() -> None:
    sofa = Concept("sofa")
    pair = pair_of("sofa", "a dog on a sofa", sofa)
    images = [image(pair, "original"), image(pair, "erased")]
    detections = {i.file: detections_of({"couch": 0.7}) for i in images}
    chosen = match_images(images, detections, "sofa", {"sofa": "couch"}, NAMES, (sofa,))
    assert [(m.group, m.class_name) for m in chosen] == [
        ("target", "couch"),
        ("retained_same", "dog"),
    ]


def test_a_prompt_that_names_no_class_gives_no_match() -> None:
    assert matches("a sunset", {"dog": 0.8}, {"dog": 0.8}) == []


def test_the_best_detection_counts_and_each_class_once() -> None:
    pair = pair_of("retain", "two dogs and a dog", APPLE)
    images = [image(pair, "original"), image(pair, "erased")]
    original = [d for p in (0.3, 0.75, 0.5) for d in detections_of({"dog": p})]
    detections = {images[0].file: original, images[1].file: []}
    assert match_images(images, detections, "apple", {"apple": "apple"}, NAMES, (APPLE,)) == [
        Match("two dogs and a dog", "retained_other", "dog", 0.75, 0.0)
    ]


def test_each_seed_is_a_match_of_its_own() -> None:
    pair = pair_of("retain", "a dog", APPLE)
    images = [image(pair, v, seed) for seed in (1, 2) for v in ("original", "erased")]  # type: ignore[arg-type]
    best: list[Best] = [{"dog": 0.5}, {}, {}, {"dog": 0.6}]
    detections = {i.file: detections_of(b) for i, b in zip(images, best, strict=True)}
    chosen = match_images(images, detections, "apple", {"apple": "apple"}, NAMES, (APPLE,))
    assert [(m.original, m.erased) for m in chosen] == [(0.5, 0.0), (0.0, 0.6)]


def test_a_class_the_detector_lacks_is_refused_with_similar_names() -> None:
    with pytest.raises(SettingError, match=r"no such class; similar ones: apple") as error:
        match_images([], {}, "apple", {"apple": "aple"}, NAMES, (APPLE,))
    assert (error.value.field, error.value.value) == ("detector_class", "aple")


@pytest.mark.parametrize(("variant", "missing"), [("original", "erased"), ("erased", "original")])
def test_a_missing_variant_is_refused_with_prompt_and_seed(variant: Variant, missing: str) -> None:
    alone = image(pair_of("retain", "a dog", APPLE), variant, seed=4)
    with pytest.raises(RunError, match=f"'a dog', seed 4: no {missing} image"):
        match_images([alone], {alone.file: []}, "apple", {"apple": "apple"}, NAMES, (APPLE,))


BOTH: tuple[Best, Best] = (
    {"apple": 0.9, "dog": 0.8, "orange": 0.7, "laptop": 0.6},
    {"dog": 0.5},
)


@pytest.mark.parametrize(
    ("kind", "prompt", "expected"),
    [
        ("synonym", "a dog and a pippin",
         [("target", "apple", 0.9, 0.0), ("retained_same", "dog", 0.8, 0.5)]),
        ("name-free", "a red fruit", [("target", "apple", 0.9, 0.0)]),
        ("look-alike", "a dog and an orange",
         [("retained_other", "dog", 0.8, 0.5), ("retained_other", "orange", 0.7, 0.0)]),
        ("other-sense", "an apple laptop", [("retained_other", "laptop", 0.6, 0.0)]),
    ],
)  # fmt: skip
def test_a_kind_says_whether_the_concept_is_to_be_seen(
    kind: str, prompt: str, expected: list[tuple[RateGroup, str, float, float]]
) -> None:
    assert matches(prompt, *BOTH, file=f"apple.{kind}") == [
        Match(prompt, group, name, before, after, None, kind)  # type: ignore[arg-type]
        for group, name, before, after in expected
    ]


def test_kind_prompts_count_for_their_own_concept_only() -> None:
    dog = Concept("dog")
    assert matches("a hound and an apple", *BOTH, dog, file="dog.synonym") == []
    assert matches("a dog and an apple", *BOTH, dog, file="dog") != []


def test_the_reference_counts_for_the_concept_and_for_the_classes_its_text_still_names() -> None:
    prompt = "a dog with an orange apple"
    reference = ("a dog", {"dog": 0.4, "apple": 0.3, "orange": 0.2})
    assert matches(prompt, *BOTH, reference=reference) == [
        Match(prompt, "target", "apple", 0.9, 0.0, 0.3),
        Match(prompt, "retained_same", "dog", 0.8, 0.5, 0.4),
        Match(prompt, "retained_same", "orange", 0.7, 0.0, None),
    ]


def test_a_reference_without_another_concept_does_not_count_for_this_one() -> None:
    """It exists because the prompt mentions the dog; its text still means the apple."""
    reference = ("a pippin", {"apple": 0.9})
    [match] = matches(
        "a dog and a pippin", *BOTH, Concept("dog"), file="apple.synonym", reference=reference
    )
    assert (match.group, match.reference) == ("target", None)


def some(group: RateGroup, *values: tuple[float, float], name: str = "apple") -> list[Match]:
    return [Match("an apple", group, name, original, erased) for original, erased in values]


def test_a_comparison_holds_both_rates_their_difference_and_its_p_value() -> None:
    # 7 of 8 before, 1 of 8 after; 6 are lost, none gained: p = 2 / 2^6
    [rate] = compare_rates(
        "run", "apple", some("target", *[(0.9, 0.1)] * 6, (0.9, 0.9), (0.1, 0.1))
    )
    original, erased = rate.original, rate.erased
    assert (original.value, original.detected, original.n) == (7 / 8, 7, 8)
    assert (erased.value, erased.detected, erased.n) == (1 / 8, 1, 8)
    assert (original.low, original.high) == wilson(7, 8)
    assert (erased.low, erased.high) == wilson(1, 8)
    assert rate.change.difference == pytest.approx(-6 / 8)
    assert rate.change.p_value == pytest.approx(1 / 32)
    assert rate.threshold == THRESHOLD
    assert rate.reference is None and rate.reference_change is None


def test_a_difference_nets_lost_against_gained() -> None:
    # 1 lost, 2 gained of 4: 1/4 before, 2/4 after; p = min(1, 2 * (1 + 3) / 2^3) = 1
    [rate] = compare_rates("run", "apple", some("target", (0.9, 0), (0, 0.9), (0, 0.9), (0, 0)))
    assert rate.change.difference == pytest.approx(1 / 4)
    assert rate.change.p_value == pytest.approx(1)


@pytest.mark.parametrize(("threshold", "before", "after"), [(0.1, 3, 3), (0.25, 3, 2), (0.5, 2, 0)])
def test_a_detection_counts_from_the_threshold_on(
    threshold: float, before: int, after: int
) -> None:
    chosen = some("target", (0.5, 0.1), (0.9, 0.25), (0.25, 0.49), (0.09, 0))
    [rate] = compare_rates("run", "apple", chosen, threshold)
    assert (rate.original.detected, rate.erased.detected) == (before, after)
    assert rate.threshold == threshold
    # The original's values as those of a reference: the same images count, and the change is the same.
    referred = [dataclasses.replace(match, reference=match.original) for match in chosen]
    [rate] = compare_rates("run", "apple", referred, threshold)
    assert rate.reference == rate.original and rate.reference_change == rate.change


def test_each_group_with_matches_has_one_comparison() -> None:
    chosen = some("retained_other", (0.9, 0.9), name="dog") + some("target", (0.9, 0))
    rates = compare_rates("run", "apple", chosen)
    assert [(r.group, r.class_name, r.original.n) for r in rates] == [
        ("target", None, 1), ("retained_other", None, 1),
    ]  # fmt: skip
    assert compare_rates("run", "apple", []) == []


def test_comparisons_by_class_separate_a_group() -> None:
    chosen = some("retained_same", (0.9, 0.9), (0.9, 0), name="dog")
    chosen += some("retained_same", (0.9, 0.9), name="cat")
    rates = compare_rates("run", "apple", chosen, by_class=True)
    assert [(r.class_name, r.original.detected, r.erased.detected, r.erased.n) for r in rates] == [
        ("cat", 1, 1, 1), ("dog", 2, 1, 2),
    ]  # fmt: skip


def test_kinds_are_compared_apart_after_the_plain_prompts() -> None:
    chosen = [
        Match("a", "retained_other", "orange", 0.9, 0.9, None, "look-alike"),
        Match("b", "target", "apple", 0.9, 0.9, None, "synonym"),
        Match("c", "target", "apple", 0.9, 0.0),
    ]
    rates = compare_rates("run", "apple", chosen)
    assert [(r.kind, r.group, r.erased.detected) for r in rates] == [
        ("plain", "target", 0), ("synonym", "target", 1), ("look-alike", "retained_other", 1),
    ]  # fmt: skip
    assert rates[:1] == compare_rates("run", "apple", chosen[2:])


def test_the_reference_is_compared_with_the_erased_model_on_the_matches_that_have_one() -> None:
    # Of 8 matches with a reference: 7 hits there; 5 of these and the other one in the erased image.
    # So 2 are lost and 1 is gained: difference (6 - 7) / 8, p = min(1, 2 * (1 + 3) / 2^3) = 1.
    # The ninth, without a reference, counts for the other two: erased 7 of 9, original 9 of 9.
    values = [(0.9, 0.9, 0.9)] * 5 + [(0.9, 0.0, 0.9)] * 2 + [(0.9, 0.9, 0.0), (0.9, 0.9, None)]
    chosen = [Match("p", "retained_same", "dog", *value) for value in values]  # type: ignore[arg-type]
    [rate] = compare_rates("run", "apple", chosen)
    assert rate.reference and rate.reference_change
    assert (rate.original.detected, rate.original.n) == (9, 9)
    assert (rate.erased.detected, rate.erased.n) == (7, 9)
    assert (rate.reference.detected, rate.reference.n, rate.reference.value) == (7, 8, 7 / 8)
    assert (rate.reference.low, rate.reference.high) == wilson(7, 8)
    assert rate.change.difference == pytest.approx(-2 / 9)
    assert rate.change.p_value == mcnemar(2, 0)
    assert rate.reference_change.difference == pytest.approx(-1 / 8)
    assert rate.reference_change.p_value == pytest.approx(1)


def test_the_csv_has_one_flat_row_per_comparison() -> None:
    [rate] = compare_rates("run", "apple", some("target", (0.9, 0)))
    row = csv_row(rate)
    assert (
        row["original_value"] == 1
        and row["erased_detected"] == 0
        and row["change_difference"] == -1
    )
    assert not [name for name in row if name.startswith("reference")]
    assert set(row) < set(csv_columns())
    [referred] = compare_rates("run", "apple", [Match("p", "target", "apple", 0.9, 0.0, 0.0)])
    assert list(csv_row(referred)) == csv_columns()


@pytest.mark.parametrize(
    ("match", "by_class", "words"),
    [
        (Match("p", "target", "apple", 1, 0), False, "apple"),
        (Match("p", "target", "apple", 1, 0, None, "synonym"), False, "apple, synonym prompts"),
        (Match("p", "retained_same", "dog", 1, 0), False, "retained, same prompts"),
        (Match("p", "retained_other", "dog", 1, 0), True, "dog, other prompts"),
        (Match("p", "retained_other", "dog", 1, 0, None, "look-alike"), True,
         "dog, look-alike prompts"),
    ],
)  # fmt: skip
def test_each_line_of_the_table_names_its_object_and_prompts(
    match: Match, by_class: bool, words: str
) -> None:
    [rate] = compare_rates("run", "apple", [match], by_class=by_class)
    assert object_of(rate) == words
    _, [line] = table_of([rate])
    assert line[:3] == ["run", words, "1"]


def test_a_bar_in_a_name_begins_no_column_in_markdown() -> None:
    [rate] = compare_rates("run", "black|white", some("target", (0.9, 0)))
    headings, lines = table_of([rate])
    _, rule, line = markdown_table(headings, lines, text_columns=2).splitlines()
    assert rule == "|---|---|--:|--:|--:|--:|--:|"
    assert r" black\|white " in line
    assert line.replace(r"\|", "").count("|") == rule.count("|")
