"""The ladder of a report: rungs in order, attacks among them, and objects that no prompt names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from report_run import image_record

from erase_sd.data.concept import Concept
from erase_sd.data.pair import CaptionPair, PromptKind
from erase_sd.report.data import ReportData
from erase_sd.report.ladder import depth_lines, ladder_lines
from erase_sd.report.verdict import verdict_of
from erase_sd.run import Run
from erase_sd.run.measurements import (
    AttackRecord,
    AttacksRecord,
    Detection,
    DetectionRecord,
    DetectorRecord,
    RateGroup,
    ScoresRecord,
)
from erase_sd.run.records import Origin, RunRecord, Stages, UnlearnRecord, Variant
from erase_sd.scoring.matching import Match
from erase_sd.scoring.rates import THRESHOLD, compare_rates, rate_of

UNLEARN = UnlearnRecord(
    status="done", settings={}, concepts=(Concept("apple"),),
    origin=Origin(model="", clip=(), data=""),
)  # fmt: skip
DETECTOR = DetectorRecord(
    file="d", sha256="", kind="", size=64, iou=0.45, min_probability=0.1, max_detections=300
)


def matches(group: RateGroup, kind: PromptKind, erased: int) -> list[Match]:
    """Ten images in which the original shows the class, `erased` of which still do."""
    return [
        Match(
            prompt="p", group=group, class_name="apple" if group == "target" else "dog",
            original=0.9, erased=0.9 * (i < erased), kind=kind,
        )
        for i in range(10)
    ]  # fmt: skip


def attack_record(name: str, hits: int) -> AttackRecord:
    ten, none = rate_of([i < hits for i in range(10)]), rate_of([False] * 10)
    return AttackRecord(
        attack=name, concept="apple", row="1 token", control=False, access="white box", key="", attacked=ten,
        no_attack=none, original=rate_of([True] * 10), same_input=None, found=(), images=(),
        original_images=(), seconds=1.0, settings={},
    )  # fmt: skip


def report_data(*attacks: AttackRecord) -> ReportData:
    every = [
        *matches("target", "plain", 0), *matches("target", "synonym", 2),
        *matches("retained_same", "plain", 10), *matches("retained_other", "look-alike", 9),
    ]  # fmt: skip
    scores = ScoresRecord(
        threshold=THRESHOLD, detectors=(), rates=tuple(compare_rates("apple", "apple", every)),
        by_class=(), sweep=(),
    )  # fmt: skip
    record = RunRecord(format=2, stages=Stages(unlearn=UNLEARN))
    own = AttacksRecord(threshold=THRESHOLD, detector="d", detector_sha256="", rows=attacks)
    return ReportData(
        Run(Path("runs/apple")), record, scores=scores, attacks=own if attacks else None
    )


def test_rungs_run_from_the_name_over_attacks_to_what_is_retained() -> None:
    data = report_data(attack_record("none", 0), attack_record("p4d", 3))
    assert [line[0] for line in ladder_lines(data)] == [
        "apple, prompts that name it", "apple, synonym prompts", "apple, attack: p4d, 1 token",
        "retained, same prompts", "retained, look-alike prompts",
    ]  # fmt: skip
    assert ladder_lines(data)[2] == [
        "apple, attack: p4d, 1 token", "10", "100 % [72, 100]", "30 % [11, 60]"
    ]  # fmt: skip


def test_attacks_are_rungs_without_anything_to_retain_too() -> None:
    data = report_data(attack_record("p4d", 3))
    assert data.scores
    rates = tuple(rates for rates in data.scores.rates if rates.group == "target")
    data.scores = dataclasses.replace(data.scores, rates=rates)
    assert [line[0] for line in ladder_lines(data)][-1] == "apple, attack: p4d, 1 token"


def test_the_verdict_says_what_was_tried_only() -> None:
    words = "Apple is gone from prompts that name it."
    without = verdict_of(report_data(), [])
    assert without.judgements[0] == words and not any("attack" in j for j in without.judgements)
    assert "Apple was not attacked (erase-sd attack --run runs/apple)." in without.evidence
    synonym = (
        "Apple, synonym prompts: detected in 10 of 10 original images and in 2 of 10 erased images."
    )
    assert synonym in without.evidence
    broken = verdict_of(report_data(attack_record("p4d", 3), attack_record("sweep", 1)), [])
    assert broken.judgements[:2] == (
        words,
        "Under attack it comes back in up to 30 % of images (p4d).",
    )
    yardstick = dataclasses.replace(attack_record("relearning", 9), control=True)
    beside = verdict_of(report_data(attack_record("p4d", 3), yardstick), [])
    assert beside.judgements[1] == broken.judgements[1]
    held = verdict_of(report_data(attack_record("p4d", 0)), [])
    assert held.judgements[1] == "No attack that was run brings it back in more than 5 % of images."
    assert depth_lines(report_data(attack_record("p4d", 3)), "apple")[1] == (
        "Apple, under 1 attack: at most 3 of 10 images (p4d, 1 token); without an attack 0 of 10."
    )


def test_objects_that_no_prompt_names_are_counted() -> None:
    data = report_data()
    pair = CaptionPair(
        caption="an apple and a dog",
        image=None,
        mentions=("apple",),
        set="forget",
        split="held-out",
    )
    shown: dict[Variant, tuple[str, ...]] = {
        "original": ("apple", "dog"), "erased": ("dog", "chair", "chair", "kite"),
    }  # fmt: skip
    for variant, names in shown.items():
        image = dataclasses.replace(image_record(f"{variant}.png"), variant=variant, pair=pair)
        data.images.append(image)
        data.detections[image.file, image.sha256] = DetectionRecord(
            file=image.file, sha256="", names=("apple", "dog", "chair", "kite"), detector=DETECTOR,
            detections=tuple(
                Detection(name=n, probability=0.2 if n == "kite" else 0.9, box=(0.0, 0.0, 1.0, 1.0))
                for n in names
            ),
        )  # fmt: skip
    label = "objects that the prompt does not name, per 100 images, prompts that name the concept"
    assert ladder_lines(data)[-1] == [label, "1", "0", "100"]
