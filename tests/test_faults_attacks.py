"""Attacks: rows that are not this run's, budgets that repeat, text encoders that are exchanged."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty import Decline, DeclinedError, Faults
from PIL import Image
from report_run import known_answers, scored_run
from test_ladder import attack_record

from erase_sd.attacks.registry import build_attacks
from erase_sd.attacks.settings import AttackSettings
from erase_sd.attacks.stage import attack
from erase_sd.attacks.target import Target
from erase_sd.errors import RunError, SettingError
from erase_sd.files import write_json
from erase_sd.generation import cost
from erase_sd.models.presets import Models
from erase_sd.report.data import read_report_data
from erase_sd.report.ladder import depth_lines
from erase_sd.report.ladder_pictures import ladder_section
from erase_sd.run import Run
from erase_sd.run.measurements import AttacksRecord
from erase_sd.scoring import stage as scoring

pytestmark = pytest.mark.faults
SMALL = AttackSettings(
    attacks=("embeddings",), budgets={"counts": 1, "steps": 1, "captions": 1}, images=1, steps=1
)
DAMAGE = {
    "[]": "damaged", "": "damaged", "{": "damaged", '{"rows": 1}': "damaged",
    "other weights": "other weights", "another detector": "made with the detector",
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored_run(tiny, tmp_path_factory.mktemp("attacks"))


@pytest.fixture
def finished(scored: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A scored run that may be damaged, and a detector that finds nothing."""
    import shutil

    shutil.copytree(scored.folder, "runs/apple")
    monkeypatch.setattr(Target, "probabilities", lambda _, files: [0.0] * len(files))
    return Run(Path("runs/apple"))


@pytest.mark.parametrize(
    "what", ["[]", *(pytest.param(what, marks=pytest.mark.slow) for what in list(DAMAGE)[1:])]
)
def test_rows_that_are_dropped_are_named(
    finished: Run, tiny: Models, what: str, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    record = AttacksRecord(
        threshold=0.25, detector="d", detector_sha256=tiny.detector_hash(),
        erased_sha256=finished.erasure().weights_sha256, rows=(attack_record("p4d", 1),),
    )  # fmt: skip
    if what == "other weights":
        record = dataclasses.replace(record, erased_sha256={"text_encoder": "0"})
    elif what == "another detector":
        record = dataclasses.replace(record, detector_sha256="0")
    write_json(finished.folder / "attacks.json", dataclasses.asdict(record))
    if DAMAGE[what] == "damaged":
        (finished.folder / "attacks.json").write_text(what)
    with faults("damaged results", f"attacks.json: {what}"), caplog.at_level(logging.WARNING):
        rows = attack(finished, tiny, SMALL).rows
        assert [row.attack for row in rows] == ["none", "embeddings"]
        [line] = [m for m in caplog.messages if "its rows are dropped" in m]
        assert "attacks.json" in line and DAMAGE[what] in line and "\n" not in line


def test_rows_of_other_attacks_are_kept_without_a_word(
    finished: Run, tiny: Models, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    record = AttacksRecord(
        threshold=0.25, detector="d", detector_sha256=tiny.detector_hash(),
        erased_sha256=finished.erasure().weights_sha256, rows=(attack_record("p4d", 1),),
    )  # fmt: skip
    write_json(finished.folder / "attacks.json", dataclasses.asdict(record))
    with faults("damaged results", "attacks.json: nothing is dropped"):
        rows = attack(finished, tiny, SMALL).rows
        assert [row.attack for row in rows] == ["p4d", "none", "embeddings"]
        assert "dropped" not in caplog.text


def test_an_image_of_an_attack_that_was_replaced_is_generated_again(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    first = attack(finished, tiny, SMALL).rows
    image = finished.folder / first[-1].images[0].file
    valid = image.read_bytes()
    for what, content in (("another", b"x"), ("cut", valid[:-9]), ("removed", None)):
        image.unlink()
        if content is not None:
            image.write_bytes(content)
        with faults("silent wrong results", f"image of an attack: {what}"):
            again = attack(finished, tiny, SMALL).rows
            assert image.read_bytes() == valid
            assert [dataclasses.replace(r, seconds=0) for r in again] == [
                dataclasses.replace(r, seconds=0) for r in first
            ]


def test_a_model_card_shows_no_image_of_an_attack_that_was_replaced(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    row = attack(finished, tiny, SMALL).rows[-1]
    image = finished.folder / row.images[0].file
    assert "embeddings" in ladder_section(finished, Path("card"))
    Image.new("RGB", (64, 64)).save(image)
    with faults("silent wrong results", "model card: a replaced image of an attack"):
        with pytest.raises(RunError, match="attack again"):
            ladder_section(finished, Path("card"))


def test_a_report_shows_no_attacks_that_another_detector_judged(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    record = AttacksRecord(
        threshold=0.25, detector="other.pt", detector_sha256=tiny.detector_hash(),
        erased_sha256=finished.erasure().weights_sha256, rows=(attack_record("p4d", 1),),
    )  # fmt: skip
    for sha256, shown in ((record.detector_sha256, True), ("0", False)):
        own = dataclasses.replace(record, detector_sha256=sha256)
        write_json(finished.folder / "attacks.json", dataclasses.asdict(own))
        with faults("silent wrong results", f"report: attacks by the detector {sha256[:4]}"):
            data = read_report_data(finished)
            assert (data.attacks is not None) == shown
            theirs, own_file = "other.pt (sha256 0)", f"(sha256 {tiny.detector_hash()[:12]})"
            lines = [line for line in data.missing if f"made with the detector {theirs}" in line]
            assert len(lines) == (not shown) and all(own_file in line for line in lines)
            evidence = " ".join(depth_lines(data, "apple"))
            assert ("under 1 attack" in evidence) == shown
            assert "was not attacked" not in evidence


def test_a_report_shows_no_attacks_that_were_judged_by_other_words(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    record = AttacksRecord(
        threshold=0.25, detector="d", detector_sha256=tiny.detector_hash(),
        erased_sha256=finished.erasure().weights_sha256, rows=(),
    )  # fmt: skip
    same = {"detector_class": "apple", "detector_text_sha256": None}
    for settings, shown in (
        ({}, True), (same, True), (same | {"detector_class": "orange"}, False),
        (same | {"detector_text_sha256": "0"}, False),
    ):  # fmt: skip
        row = dataclasses.replace(attack_record("p4d", 1), settings=settings)
        own = dataclasses.replace(record, rows=(row,))
        write_json(finished.folder / "attacks.json", dataclasses.asdict(own))
        with faults("silent wrong results", f"report: attacks judged by {settings}"):
            data = read_report_data(finished)
            assert (data.attacks is not None) == shown
            lines = [line for line in data.missing if "apple: judged with another" in line]
            assert len(lines) == (not shown)


@pytest.mark.parametrize(
    ("name", "budget"),
    [("embeddings", "counts=1,1"), ("word-search", "counts=2,3,2"), ("relearning", "steps=5,5")],
)
def test_a_budget_that_repeats_a_number_is_one_line(name: str, budget: str, faults: Faults) -> None:
    key, _, value = budget.partition("=")
    with faults("settings out of bounds", f"{name}: {budget}"):
        with pytest.raises(SettingError, match="needs different numbers"):
            build_attacks([name], {key: value})


def test_detections_by_another_text_encoder_are_not_taken_over(
    finished: Run, tiny: Models, tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def detect(*arguments: object) -> object:
        calls.append(tmp_path)
        return known_answers(*arguments[:2])  # type: ignore[arg-type]

    monkeypatch.setattr("erase_sd.scoring.detections.detect", detect)
    text = tmp_path / "text.ts"
    text.write_bytes(b"one")
    models = dataclasses.replace(tiny, detector_text=text)
    for what, content, expected in (("no", None, 0), ("a", b"one", 1), ("the same", b"one", 1),
                                    ("another", b"two", 2)):  # fmt: skip
        if content:
            text.write_bytes(content)
        with faults("silent wrong results", f"scored with {what} text encoder"):
            scoring.score(finished, models if content else tiny)
            assert len(calls) == expected


def test_a_long_attack_is_announced_and_can_be_declined(
    finished: Run, tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    decline = Decline()
    monkeypatch.setattr(cost, "MANY_IMAGES", 2)
    with faults("long runs", "attack: declined"), caplog.at_level(logging.INFO):
        with pytest.raises(DeclinedError):
            attack(finished, tiny, SMALL, approve=decline)
        assert decline.images == 2 and decline.seconds is not None
        assert "at least 2 images are to be generated, in about" in caplog.text
        assert not (finished.folder / "attacks.json").exists()


def test_a_disk_that_is_too_small_for_an_attack_is_known_before_it(
    finished: Run, tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with faults("full disks", "attack: known before"):
        with pytest.raises(RunError, match="are free on its disk"):
            attack(finished, tiny, SMALL)
        assert not (finished.folder / "attacks.json").exists()
