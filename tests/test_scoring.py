"""The score stage: its detector, its classes, its files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from erase_sd.data.concept import Concept
from erase_sd.data.pair import CaptionPair
from erase_sd.detection.detector import DetectorAnswer
from erase_sd.errors import RunError, SettingError
from erase_sd.files import hash_file, write_records
from erase_sd.models.presets import Models, resolve
from erase_sd.run import Run
from erase_sd.run.measurements import Detection, DetectorRecord
from erase_sd.run.records import ImageRecord, Origin, Variant
from erase_sd.scoring import detections
from erase_sd.scoring import stage as scoring
from erase_sd.scoring.classes import checked_classes, classes_of
from erase_sd.scoring.stage import merge, runs_with_images
from erase_sd.scoring.table import csv_columns, note_of


def unlearned(*concepts: str) -> dict[str, Any]:
    """The unlearn stage's entry in `run.json`."""
    return {
        "concepts": [dataclasses.asdict(Concept(name)) for name in concepts],
        "origin": dataclasses.asdict(Origin(model="", clip=(), data="")),
    }


def generated(*concepts: str) -> Run:
    """A run as `generate` leaves it, with one prompt and two grey images."""
    run = Run(Path("runs") / "+".join(concepts))
    with run.stage("unlearn", {}, **unlearned(*concepts)):
        pass
    pair = CaptionPair(
        caption="an apple on a couch and a dog", image=None, mentions=("apple",), set="forget",
        split="held-out",
    )  # fmt: skip
    with run.stage("generate", {}):
        write_records(
            run.folder / "images.jsonl",
            [grey_image(run, variant, pair) for variant in ("original", "erased")],  # type: ignore[arg-type]
        )
    return run


def grey_image(run: Run, variant: Variant, pair: CaptionPair) -> ImageRecord:
    file = f"images/{variant}/p-0000.png"
    (run.folder / file).parent.mkdir(parents=True)
    Image.new("RGB", (32, 32), "grey").save(run.folder / file)
    return ImageRecord(
        file=file, variant=variant, pair=pair, prompt_file="p", text=pair.caption, seed=1, steps=2,
        guidance=7.5, size=32, scheduler="DDIMScheduler", sampler=None, dtype="float32",
        weights="", batch=0, batch_key="",
        sha256=hash_file(run.folder / file),
    )  # fmt: skip


def test_every_result_names_its_detector_with_hash_size_and_thresholds(tiny: Models) -> None:
    run = generated("apple")
    scores = scoring.score(run, tiny)
    sha256 = hash_file(tiny.detector_file())
    detector = DetectorRecord(
        file="detector.safetensors", sha256=sha256, kind="yolov5n anchor-free", size=64, iou=0.45,
        min_probability=0.1, max_detections=300,
    )  # fmt: skip
    assert scores.detectors == (detector,)
    assert run.scores() == scores
    words = (
        f"Detector: detector.safetensors (yolov5n anchor-free, sha256 {sha256[:12]}) at 64 px, "
        "IoU 0.45."
    )
    assert note_of(scores).endswith(words) and "probability 0.25 or more" in note_of(scores)
    assert (run.folder / "scores.md").read_text().endswith(f"{words}\n")
    assert [record.detector for record in run.detections()] == [detector] * 2


def test_images_are_detected_again_only_for_another_detector_or_a_damaged_file(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = generated("apple"), []
    answer = DetectorAnswer(names=("apple", "dog"), size=64, kind="known", detections=[(), ()])

    def detect(*args: Any) -> DetectorAnswer:
        calls.append(args)
        if progress := args[3]:
            progress(1, 2, "")
        return answer

    monkeypatch.setattr("erase_sd.scoring.detections.detect", detect)
    shown: list[tuple[int, int, str]] = []
    scores = scoring.score(run, tiny, progress=lambda *own: shown.append(own))
    assert shown == [(1, 2, "apple")] and calls[0][2] == ["apple"]
    path, records = run.folder / "detections.jsonl", run.detections()
    assert scoring.score(run, tiny) == scores and len(calls) == 1
    changes: list[dict[str, Any]] = [
        {"sha256": "0"}, {"iou": 0.7}, {"min_probability": 0.5}, {"max_detections": 9},
        {"text_encoder_sha256": "0"},
    ]  # fmt: skip
    for change in changes:
        other = dataclasses.replace(records[0].detector, **change)
        write_records(path, [dataclasses.replace(r, detector=other) for r in records])
        assert scoring.score(run, tiny) == scores
    path.write_text("{}\n")
    assert scoring.score(run, tiny) == scores
    assert len(calls) == 7 and run.detections() == records
    assert not detections.Detections(run, tiny, ["dog"]).missing(run.images())
    assert detections.Detections(run, tiny, ["pear"]).missing(run.images()) == run.images()
    with monkeypatch.context() as patch:  # all processes of a launcher know the rows of the first
        patch.setattr(detections, "from_first", lambda _: [])
        assert detections.Detections(run, tiny, ["dog"]).missing(run.images()) == run.images()
    monkeypatch.setattr(Models, "detector_text_path", lambda _: Path("another"))
    monkeypatch.setattr(detections, "text_encoder_hash", str)
    for _ in range(2):
        [detector] = scoring.score(run, tiny).detectors
        assert detector.text_encoder_sha256 == "another"
        assert len(calls) == 8 and calls[-1][4] == Path("another")


def test_processes_share_whole_chunks_of_images_and_the_answers_are_in_the_images_order(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[str] = []

    def detect(_: Path, files: Sequence[Path], targets: Sequence[str], *__: Any) -> DetectorAnswer:
        shares.append("".join(file.stem for file in files))
        box = (0.0, 0.0, 9.0, 9.0)
        rows = [(Detection(name=targets[0], probability=int(f.stem) / 9, box=box),) for f in files]
        return DetectorAnswer(names=("apple",), size=64, kind="known", detections=rows)

    monkeypatch.setattr(detections, "detect", detect)
    monkeypatch.setattr(detections, "CHUNK", 2)
    monkeypatch.setattr(detections, "place", lambda: (1, 3))
    monkeypatch.setattr(detections, "each", lambda items, work: [work(item) for item in items])
    answer = detections._detect([Path(f"{n}.png") for n in range(9)], tiny, ["apple"], None)
    assert shares == ["0167", "238", "45"]
    assert [(row[0].name, row[0].probability) for row in answer.detections] == [
        ("apple", n / 9) for n in range(9)
    ]


def test_detections_are_those_of_the_image_that_lies_there_now(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = generated("apple")
    scoring.score(run, tiny)
    [original, erased] = run.images()
    Image.new("RGB", (32, 32), "white").save(run.folder / erased.file)
    changed = dataclasses.replace(erased, sha256=hash_file(run.folder / erased.file))
    write_records(run.folder / "images.jsonl", [original, changed])
    seen: list[str] = []
    detect = detections.detect

    def watched(detector: Path, images: Sequence[Path], *rest: Any) -> DetectorAnswer:
        seen.extend(path.parent.name for path in images)
        return detect(detector, images, *rest)

    monkeypatch.setattr(detections, "detect", watched)
    scoring.score(run, tiny)
    assert seen == ["erased"]
    assert [row.sha256 for row in run.detections()] == [original.sha256, changed.sha256]


def test_scores_of_several_runs_name_each_detector_once(tiny: Models) -> None:
    scores = scoring.score(generated("apple"), tiny)
    other = dataclasses.replace(scores.detectors[0], file="b.pt")
    merged = merge(scores, dataclasses.replace(scores, detectors=(other,)), scores)
    assert merged.detectors == (scores.detectors[0], other)
    assert merged.rates == scores.rates * 3
    assert note_of(merged).count("detector.safetensors (yolov5n anchor-free") == 1
    assert merge().rates == ()


def test_the_csv_has_a_row_for_each_comparison_at_each_threshold(tiny: Models) -> None:
    run = generated("apple")
    scores = scoring.score(run, tiny)
    with (run.folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == csv_columns() and len(rows) == len(scores.sweep)
    assert {row["threshold"] for row in rows} == {"0.1", "0.25", "0.5"}
    assert {row["reference_value"] for row in rows} == {""}


def test_only_runs_with_images_are_listed() -> None:
    generated("pear")
    generated("apple")
    with Run(Path("runs/chair")).stage("unlearn", {}, **unlearned("chair")):
        pass
    runs, unreadable = runs_with_images()
    assert [run.name for run in runs] == ["apple", "pear"] and not unreadable


def test_the_class_is_the_concepts_own_name_unless_an_option_names_another() -> None:
    one, two = [Concept("fruit")], [Concept("fruit"), Concept("hound")]
    assert classes_of(one, []) == {"fruit": "fruit"}
    assert classes_of(one, ["apple"]) == classes_of(one, ["fruit=apple"]) == {"fruit": "apple"}
    options = ["fruit=apple", "hound=dog"]
    assert classes_of(two, options) == {"fruit": "apple", "hound": "dog"}
    for text in ("apple", "pear=apple", "fruit=", "=apple"):
        with pytest.raises(SettingError, match=r"needs concept=class, .*: fruit, hound") as error:
            classes_of(two, [text])
        assert (error.value.field, error.value.value) == ("detector_class", text)
    with pytest.raises(SettingError, match=r"needs concept=class, .*: fruit$"):
        classes_of(one, ["pear=apple"])


def test_each_class_is_looked_up_and_the_users_own_detector_loaded_before_the_work_begins(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "erase_sd.scoring.classes.detect", lambda *own, **_: loaded.append((own[0], own[2]))
    )
    with pytest.raises(SettingError, match="no such class") as error:
        checked_classes(tiny, [Concept("apple"), Concept("pear")], [])
    assert error.value.value == "pear" and not loaded
    checked_classes(resolve(detector=tiny.detector), [Concept("pear")], ["apple"])
    assert loaded == [(tiny.detector, ["apple"])]


def test_the_classes_of_all_concepts_are_targets_and_none_is_retained(tiny: Models) -> None:
    run = generated("apple", "sofa")
    with pytest.raises(SettingError, match="no such class; similar ones: ") as error:
        scoring.score(run, tiny)
    assert (error.value.field, error.value.value) == ("detector_class", "sofa")
    assert not (run.folder / "detections.jsonl").exists()
    scores = scoring.score(run, tiny, ["sofa=couch"])
    assert [(r.concept, r.group, r.class_name) for r in scores.by_class] == [
        ("apple", "target", "apple"), ("apple", "retained_same", "dog"),
    ]  # fmt: skip


def test_a_run_without_images_is_refused(tiny: Models) -> None:
    run = generated("apple")
    (run.folder / "images.jsonl").unlink()
    with pytest.raises(RunError, match=r"images\.jsonl: missing or empty; generate again"):
        scoring.score(run, tiny)


def test_a_detectors_class_is_the_same_in_upper_and_lower_case() -> None:
    assert classes_of([Concept("Apple")], []) == {"Apple": "apple"}
    assert classes_of([Concept("apple")], ["Granny Smith "]) == {"apple": "granny smith"}
