"""The score stage says which detector its rows rest on, and which class it looked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

import erase_sd
from erase_sd.data.concept import Concept
from erase_sd.errors import SettingError
from erase_sd.files import hash_file, read_rows, write_rows
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import stage as scoring
from erase_sd.scoring.stage import Tables, Used, classes_of


def drawn(*concepts: str) -> Run:
    """A run as `generate` leaves it, with one prompt and two grey images."""
    run = Run(Path("runs") / "+".join(concepts))
    stored = [{"name": name, "synonyms": [], "keep_senses": []} for name in concepts]
    with run.stage("unlearn", {"concepts": stored}):
        pass
    with run.stage("generate", {}):
        rows = []
        for arm in ("original", "erased"):
            path = run.folder / "images" / arm / "0000.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), "grey").save(path)
            rows.append(
                {"file": str(path.relative_to(run.folder)), "sha256": hash_file(path), "arm": arm,
                 "prompt": "an apple on a couch and a dog", "prompts": "p.txt", "seed": 1}
            )  # fmt: skip
        write_rows(run.folder / "images.jsonl", rows)
    return run


def test_every_result_names_the_detector_its_kind_hash_size_and_thresholds(tiny: Models) -> None:
    run = drawn("apple")
    tables = scoring.score(run, tiny)
    digest = hash_file(tiny.detector_file())
    about = {
        "kind": "yolov5n anchor-free", "file": "detector.safetensors", "sha256": digest,
        "size": 64, "iou": 0.45, "lowest": 0.1, "max_detections": 300,
    }  # fmt: skip
    assert [dataclasses.asdict(used) for used in tables.detectors] == [about]
    assert json.loads((run.folder / "scores.json").read_text())["detectors"] == [about]
    said = (
        f"Detector: detector.safetensors (yolov5n anchor-free, sha256 {digest[:12]}) at 64 px, "
        "IoU 0.45."
    )
    assert tables.note.endswith(said) and "probability of at least 0.25" in tables.note
    assert (run.folder / "scores.md").read_text().endswith(f"{said}\n")
    for row in read_rows(run.folder / "detections.jsonl"):
        assert (row["kind"], row["detector_sha256"], row["size"]) == (about["kind"], digest, 64)
        assert (row["iou"], row["lowest"]) == (0.45, 0.1)


def test_rows_of_another_detector_or_without_a_kind_are_detected_again(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = drawn("apple"), []
    answer = {
        "names": ["apple", "dog"], "size": 64, "kind": "yolov5n anchor-free", "rows": [[], []],
    }  # fmt: skip
    monkeypatch.setattr(scoring, "detect", lambda *given: asked.append(given) or answer)
    tables = scoring.score(run, tiny)
    path = run.folder / "detections.jsonl"
    whole = read_rows(path)
    assert scoring.score(run, tiny) == tables and len(asked) == 1
    for change in ({"detector_sha256": "0"}, {"iou": 0.7}, {"lowest": 0.5}):
        write_rows(path, [row | change for row in whole])
        assert scoring.score(run, tiny) == tables
    write_rows(path, [{k: v for k, v in row.items() if k != "kind"} for row in whole])
    assert scoring.score(run, tiny) == tables
    assert len(asked) == 5 and read_rows(path) == whole


def test_the_table_of_several_runs_names_each_detector_once() -> None:
    a, b = Used("yolov5n anchor-based", "a.pt", "1" * 64, 640), Used("x", "b.pt", "2" * 64, 64)
    both = Tables(detectors=[a]) + Tables(detectors=[b]) + Tables(detectors=[a])
    assert both.detectors == [a, b]
    assert both.note.count("a.pt (yolov5n anchor-based, sha256 111111111111) at 640 px") == 1


def test_the_class_is_the_concepts_own_name_unless_another_is_given() -> None:
    one, two = [Concept("fruit")], [Concept("fruit"), Concept("hound")]
    assert classes_of(one, []) == {"fruit": "fruit"}
    assert classes_of(one, ["apple"]) == classes_of(one, ["fruit=apple"]) == {"fruit": "apple"}
    given = ["fruit=apple", "hound=dog"]
    assert classes_of(two, given) == {"fruit": "apple", "hound": "dog"}
    for text in ("apple", "pear=apple", "fruit=", "=apple"):
        with pytest.raises(SettingError, match=r"needs concept=class, with one .*: fruit, hound"):
            classes_of(two, [text])


def test_the_classes_of_all_concepts_are_looked_for_and_none_counts_as_retained(
    tiny: Models,
) -> None:
    run = drawn("apple", "sofa")
    with pytest.raises(SettingError, match=r"--detector-class sofa: the detector has no .* near: "):
        erase_sd.score(run.folder)
    assert not (run.folder / "detections.jsonl").exists()
    tables = scoring.score(run, tiny, ["sofa=couch"])
    assert [(r.concept, r.group, r.name) for r in tables.by_class if r.arm == "erased"] == [
        ("apple", "target", "apple"), ("apple", "retained_same", "dog"),
    ]  # fmt: skip
