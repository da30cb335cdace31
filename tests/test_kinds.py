"""Kinds of prompts beside the plain ones, and the original without the concept as a third arm."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import erase_sd
from erase_sd import report
from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.data.kinds import beside, check, is_of, read_name
from erase_sd.errors import SettingError
from erase_sd.files import read_rows
from erase_sd.generation import stage as generation
from erase_sd.mini.scenes import CLASSES
from erase_sd.models.presets import Models
from erase_sd.report.data import read
from erase_sd.report.shots import shots_of
from erase_sd.report.verdict import verdict_of
from erase_sd.run import Run
from erase_sd.scoring import stage as scoring
from erase_sd.scoring.rates import Group, Pair, Row, lines_of, mcnemar, pairs_of, rows_of, wilson
from erase_sd.scoring.table import HEADINGS, REFERENCE_HEADINGS, table_of
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

QUICK: dict[str, Any] = {"steps": 2, "batch": 2}
PROMPTS = {
    "apple": ("an apple", "a dog and an apple", "an apple in a park"),
    "apple.synonym": ("a dog and a pippin",),
    "apple.look-alike": ("an orange", "an orange and a dog"),
    "apple.other-sense": ("an apple laptop",),
    "retain": ("a dog",),
}


@pytest.fixture(scope="module")
def unlearned(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "apple"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder.parent / "cache"))
        quick = {"steps": 2, "forget_batch": 4, "retain_batch": 4, "retain_floor": 0.0}
        unlearn(Settings(concepts=(Concept("apple"),), **quick), tiny, Run(folder))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def run(unlearned: Path, tiny: Models) -> Run:
    """An unlearned run, and the prompt files."""
    shutil.copytree(unlearned, "runs/apple")
    run = Run(Path("runs/apple"))
    run.update(models={"preset": "mini", "model": str(tiny.model), "detector": str(tiny.detector)})
    for name, prompts in PROMPTS.items():
        Path(f"{name}.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    return run


def drawn(run: Run, arm: str) -> list[str]:
    rows = read_rows(run.folder / "images.jsonl")
    return list(dict.fromkeys(row["prompts"] for row in rows if row["arm"] == arm))


@pytest.mark.parametrize(
    ("name", "concept", "kind"),
    [
        ("apple", "apple", None),
        ("apple.synonym", "apple", "synonym"),
        ("hot-dog.look-alike", "hot-dog", "look-alike"),
        ("v1.5.name-free", "v1.5", "name-free"),
        ("apple.old", "apple.old", None),
        (".synonym", ".synonym", None),
    ],
)
def test_a_files_name_says_its_concept_and_kind(name: str, concept: str, kind: str | None) -> None:
    assert read_name(name) == (concept, kind)


def test_a_files_name_may_be_written_as_a_run_folders() -> None:
    assert is_of("hot-dog", "hot dog") and is_of("Apple", "apple") and is_of("hot_dog", "hot dog")
    assert not is_of("dog", "hot dog") and not is_of("apples", "apple")


def test_a_kind_file_of_no_concept_of_the_run_is_refused() -> None:
    files = [Path("fruit.txt"), Path("p/hot-dog.synonym.txt")]
    check(files, ["apple", "hot dog"])
    with pytest.raises(SettingError, match=r"--prompts p/hot-dog\.synonym\.txt: .* one of apple"):
        check(files, ["apple"])


def test_kinds_are_drawn_on_request_alone(run: Run) -> None:
    erase_sd.generate("apple.txt", **QUICK)
    assert drawn(run, "erased") == ["apple", "retain"]
    erase_sd.generate("apple.txt", kinds=True, **QUICK)
    kinds = ["apple.synonym", "apple.look-alike", "apple.other-sense"]
    assert drawn(run, "original") == drawn(run, "erased") == ["apple", "retain", *kinds]


def test_a_kind_file_can_be_named_and_finds_the_concepts_run(run: Run) -> None:
    assert erase_sd.generate("apple.synonym.txt", **QUICK) == Path("runs/apple")
    assert drawn(run, "erased") == ["apple.synonym", "retain"]


def test_kinds_where_no_file_is_beside_the_prompts_are_refused() -> None:
    with pytest.raises(SettingError, match=r"needs one of p/fig\.synonym\.txt, .*; there is none"):
        beside([Path("p/fig.txt")])


def test_missing_kinds_end_a_whole_run_before_it_unlearns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts").mkdir()
    Path("prompts/apple.txt").write_text("an apple\n")
    monkeypatch.setattr(sys, "argv", ["erase-sd", "run", "--concept", "apple", "--kinds"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "--kinds: needs one of prompts/apple.synonym.txt" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_reference_is_the_originals_image_of_the_prompt_without_the_concept(run: Run) -> None:
    reduced = ("", "a dog", "in a park")  # the same seeds and batches as the prompts have
    Path("reduced.txt").write_text("a cup\na dog\nin a park\n")
    erase_sd.generate(["apple.txt", "reduced.txt"], kinds=True, reference=True, **QUICK)
    rows = read_rows(run.folder / "images.jsonl")
    by_arm = {
        arm: {(row["prompts"], row["prompt"]): row for row in rows if row["arm"] == arm}
        for arm in ("original", "reference")
    }
    fair = by_arm["reference"]
    assert list(fair) == [("apple", prompt) for prompt in PROMPTS["apple"]]
    assert tuple(row["text"] for row in fair.values()) == reduced
    for key, row in fair.items():
        same = by_arm["original"][key]
        for field in ("seed", "batch", "steps", "guidance", "weights"):
            assert row[field] == same[field]
        assert row["sha256"] != same["sha256"] and "text" not in same
    last = by_arm["original"]["reduced", "in a park"]
    assert fair["apple", "an apple in a park"]["sha256"] == last["sha256"]


def test_reference_images_come_from_the_cache_for_another_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase_sd.generate("apple.txt", reference=True, **QUICK)
    before = {path.name: path.read_bytes() for path in run.folder.glob("images/reference/*")}
    asked: list[Sequence[str]] = []
    draw = generation.draw
    monkeypatch.setattr(generation, "draw", lambda *given: asked.append(given[1]) or draw(*given))
    shutil.rmtree(run.folder / "images")
    erase_sd.generate("apple.txt", reference=True, **QUICK)
    assert len(before) == 3
    assert {p.name: p.read_bytes() for p in run.folder.glob("images/reference/*")} == before
    assert [text for texts in asked for text in texts] == [
        "an apple",
        *PROMPTS["apple"][1:],
        "a dog",
    ]
    erase_sd.generate("apple.txt", **QUICK)
    assert not list(run.folder.glob("images/reference/*"))


NAMES = ("person", "dog", "apple", "orange", "laptop")
APPLE, DOG = Concept("apple"), Concept("dog")


def pairs(
    name: str, prompt: str, boxes: dict[str, dict[str, float]], text: str = "", *others: Concept
) -> list[Pair]:
    """Pairs of one prompt; `boxes` maps each arm to what was detected."""
    images = [
        {"file": arm, "arm": arm, "prompts": name, "prompt": prompt, "seed": 0}
        | ({"text": text} if arm == "reference" else {})
        for arm in boxes
    ]
    detections = {
        arm: [{"class": c, "probability": p} for c, p in found.items()]
        for arm, found in boxes.items()
    }
    return pairs_of(images, detections, APPLE, "apple", [APPLE, *others], NAMES)


BOTH = {
    "original": {"apple": 0.9, "dog": 0.8, "orange": 0.7, "laptop": 0.6},
    "erased": {"dog": 0.5},
}


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("apple.synonym", "a dog and a pippin",
         [("target", "apple", 0.9, 0.0), ("retained_same", "dog", 0.8, 0.5)]),
        ("apple.name-free", "a red fruit", [("target", "apple", 0.9, 0.0)]),
        ("apple.look-alike", "a dog and an orange",
         [("retained_other", "dog", 0.8, 0.5), ("retained_other", "orange", 0.7, 0.0)]),
        ("apple.other-sense", "an apple laptop", [("retained_other", "laptop", 0.6, 0.0)]),
    ],
)  # fmt: skip
def test_the_concept_is_looked_for_where_it_is_meant_and_the_rest_is_retained(
    name: str, prompt: str, expected: list[tuple[Group, str, float, float]]
) -> None:
    kind = read_name(name)[1]
    assert pairs(name, prompt, BOTH) == [
        Pair(prompt, group, found, before, after, None, kind)
        for group, found, before, after in expected
    ]


def test_the_kinds_of_one_concept_are_not_anothers() -> None:
    assert pairs("dog.synonym", "a hound and an apple", BOTH, "", DOG) == []
    assert pairs("dog", "a dog and an apple", BOTH, "", DOG) != []


def test_the_reference_is_looked_at_for_the_concept_and_for_what_its_text_still_names() -> None:
    boxes = BOTH | {"reference": {"dog": 0.4, "apple": 0.3, "orange": 0.2}}
    assert pairs("apple", "a dog with an orange apple", boxes, "a dog") == [
        Pair("a dog with an orange apple", "target", "apple", 0.9, 0.0, 0.3),
        Pair("a dog with an orange apple", "retained_same", "dog", 0.8, 0.5, 0.4),
        Pair("a dog with an orange apple", "retained_same", "orange", 0.7, 0.0, None),
    ]


def test_a_reference_without_another_concept_is_none_of_this_one() -> None:
    """It was drawn because the prompt mentions the dog; the concept itself stayed in its text."""
    boxes = BOTH | {"reference": {"apple": 0.9}}
    [pair] = pairs("apple.synonym", "a dog and a pippin", boxes, "a pippin", DOG)
    assert (pair.group, pair.reference) == ("target", None)


def test_rows_of_a_kind_stand_apart_after_those_of_the_plain_prompts() -> None:
    chosen = [
        Pair("a", "retained_other", "orange", 0.9, 0.9, None, "look-alike"),
        Pair("b", "target", "apple", 0.9, 0.9, None, "synonym"),
        Pair("c", "target", "apple", 0.9, 0.0),
    ]
    rows = rows_of("run", "apple", chosen)
    assert [(r.kind, r.group, r.arm, r.found, r.n) for r in rows] == [
        (None, "target", "original", 1, 1), (None, "target", "erased", 0, 1),
        ("synonym", "target", "original", 1, 1), ("synonym", "target", "erased", 1, 1),
        ("look-alike", "retained_other", "original", 1, 1),
        ("look-alike", "retained_other", "erased", 1, 1),
    ]  # fmt: skip
    assert rows[:2] == rows_of("run", "apple", chosen[2:])


def test_the_references_row_compares_the_erased_with_it_on_the_pairs_that_have_one() -> None:
    # Of 8 pairs with a reference: 7 found there; 5 of these and the other one in the erased image.
    # So 2 are lost and 1 is gained: difference (6 - 7) / 8, p = min(1, 2 * (1 + 3) / 2^3) = 1.
    # The ninth, without a reference, counts for the other two arms: erased 7 of 9, original 9 of 9.
    values = [(0.9, 0.9, 0.9)] * 5 + [(0.9, 0.0, 0.9)] * 2 + [(0.9, 0.9, 0.0), (0.9, 0.9, None)]
    chosen = [Pair("p", "retained_same", "dog", *value) for value in values]  # type: ignore[arg-type]
    before, after, fair = rows_of("run", "apple", chosen)
    assert (before.arm, before.found, before.n) == ("original", 9, 9)
    assert (after.arm, after.found, after.n) == ("erased", 7, 9)
    assert (fair.arm, fair.found, fair.n, fair.rate) == ("reference", 7, 8, 7 / 8)
    assert (fair.low, fair.high) == wilson(7, 8)
    assert after.difference == pytest.approx(-2 / 9) and after.p_value == mcnemar(2, 0)
    assert fair.difference == pytest.approx(-1 / 8) and fair.p_value == pytest.approx(1)
    assert lines_of([before, after, fair, before, after]) == [
        (before, after, fair), (before, after, None),
    ]  # fmt: skip


def known(detector: Path, files: list[Path], *_: Any) -> dict[str, Any]:
    """An answer for `detect`: the original draws all, the erased model no apple, and no second dog."""
    found = {
        ("original", "apple"): "apple dog", ("erased", "apple"): "dog",
        ("reference", "apple"): "dog", ("original", "retain"): "dog", ("erased", "retain"): "dog",
        ("original", "apple.synonym"): "apple dog", ("erased", "apple.synonym"): "apple",
        ("original", "apple.look-alike"): "orange dog", ("erased", "apple.look-alike"): "orange",
        ("original", "apple.other-sense"): "laptop", ("erased", "apple.other-sense"): "",
    }  # fmt: skip
    rows = [
        [{"class": name, "probability": 0.9, "box": [1.0, 1.0, 9.0, 9.0]} for name in words.split()]
        for words in (found[path.parent.name, path.stem.rpartition("-")[0]] for path in files)
    ]
    return {"names": CLASSES, "size": 64, "kind": "known answers", "rows": rows}


def scored(run: Run, monkeypatch: pytest.MonkeyPatch, **more: bool) -> scoring.Tables:
    monkeypatch.setattr(scoring, "detect", known)
    erase_sd.generate("apple.txt", **more, **QUICK)
    return erase_sd.score("apple")


def plain(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.kind is None and row.arm != "reference"]


def test_kinds_and_reference_add_to_the_tables_and_change_nothing_in_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scored(run, monkeypatch)
    text = (run.folder / "scores.json").read_text()
    assert '"kind": "known answers"' in text and text.count('"kind"') == 1
    first = (run.folder / "scores.md").read_text()
    assert first.splitlines()[0] == "| " + " | ".join(HEADINGS) + " |"
    assert before.note in first and "Without it" not in first
    after = scored(run, monkeypatch, kinds=True, reference=True)
    for part in ("rows", "by_class", "sweep"):
        assert plain(getattr(after, part)) == getattr(before, part)
    stored = json.loads((run.folder / "scores.json").read_text())
    kept = [row for row in stored["rows"] if "kind" not in row and row["arm"] != "reference"]
    assert kept == json.loads(text)["rows"]
    assert {row["kind"] for row in stored["sweep"] if "kind" in row} == {
        "synonym", "look-alike", "other-sense",
    }  # fmt: skip
    with (run.folder / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[-1] == "kind" and len(lines) == len(after.sweep)


def test_the_table_has_a_line_for_each_kind_and_the_reference_beside(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = scored(run, monkeypatch, kinds=True, reference=True)
    headings, lines = table_of(tables.rows)
    assert headings == HEADINGS + REFERENCE_HEADINGS
    assert "Without it: the original model on the prompts with the concept" in tables.note
    rates = {line[1]: (line[2], *(cell.split(" ")[0] for cell in line[3:])) for line in lines}
    assert rates == {
        "apple": ("3", "100.0", "0.0", "-100.0", "0.2", "0.0", "+0.0", "1"),
        "others, same captions": ("1", "100.0", "100.0", "+0.0", "1", "100.0", "+0.0", "1"),
        "others, elsewhere": ("1", "100.0", "100.0", "+0.0", "1", "", "", ""),
        "apple, synonym": ("1", "100.0", "100.0", "+0.0", "1", "", "", ""),
        "others, synonym captions": ("1", "100.0", "0.0", "-100.0", "1", "", "", ""),
        "others, look-alike": ("3", "100.0", "66.7", "-33.3", "1", "", "", ""),
        "others, other-sense": ("1", "100.0", "0.0", "-100.0", "1", "", "", ""),
    }
    table = (run.folder / "scores.md").read_text().splitlines()
    assert len({line.count("|") for line in table[: 2 + len(lines)]}) == 1


def test_the_report_judges_by_the_plain_prompts_and_shows_the_kinds(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(run, monkeypatch)
    before = read(run)
    words = verdict_of(before, shots_of(before))
    tables = scored(run, monkeypatch, kinds=True, reference=True)
    after = read(run)
    shots = shots_of(after)
    assert verdict_of(after, shots) == words
    assert after.missing == before.missing == []
    assert {(s.kind, s.outcomes) for s in shots if "." in s.prompts} == {
        ("synonym", ("leaked", "damaged")), ("look-alike", ("kept",)), ("look-alike", ("damaged",)),
        ("other-sense", ("damaged",)),
    }  # fmt: skip
    page, index = (path.read_text() for path in report.write_all([run]))
    for label in ("apple, synonym", "others, look-alike", "orange, look-alike", "without it %"):
        assert label in page
    assert tables.note in page.replace("&#39;", "'")
    assert "concept 100.0 to 0.0 percent, other objects 100.0 to 100.0 percent" in index
