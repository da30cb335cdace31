"""Kinds of prompts other than plain, and the reference: the original on concept-removed prompts."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import erase_sd
from erase_sd import report
from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.data.kinds import (
    check_kind_files,
    kind_files_beside,
    names_concept,
    parse_prompt_file_name,
)
from erase_sd.detection.detector import DetectorAnswer
from erase_sd.errors import SettingError
from erase_sd.generation import batch as batches
from erase_sd.mini.scenes import CLASSES
from erase_sd.models.presets import Models
from erase_sd.report.data import read_report_data
from erase_sd.report.image_pairs import image_pairs_of
from erase_sd.report.verdict import verdict_of
from erase_sd.run import Run
from erase_sd.run.measurements import Detection, RateComparison, ScoresRecord
from erase_sd.run.records import Variant
from erase_sd.scoring.table import HEADINGS, REFERENCE_HEADINGS, note_of, table_of
from erase_sd.unlearning.settings import UnlearnSettings
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
        unlearn(UnlearnSettings(concepts=(Concept("apple"),), **quick), tiny, Run(folder))  # type: ignore[arg-type]
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


def prompt_files(run: Run, variant: Variant) -> list[str]:
    """Prompt files whose prompts the variant has generated."""
    images = [image for image in run.images() if image.variant == variant]
    return list(dict.fromkeys(image.prompt_file for image in images))


@pytest.mark.parametrize(
    ("name", "concept", "kind"),
    [
        ("apple", "apple", "plain"),
        ("apple.synonym", "apple", "synonym"),
        ("hot-dog.look-alike", "hot-dog", "look-alike"),
        ("v1.5.name-free", "v1.5", "name-free"),
        ("apple.old", "apple.old", "plain"),
        (".synonym", ".synonym", "plain"),
    ],
)
def test_a_file_name_gives_concept_and_kind(name: str, concept: str, kind: str) -> None:
    assert parse_prompt_file_name(name) == (concept, kind)


def test_a_file_name_may_be_written_like_a_run_folder() -> None:
    assert (
        names_concept("hot-dog", "hot dog")
        and names_concept("Apple", "apple")
        and names_concept("hot_dog", "hot dog")
    )
    assert not names_concept("dog", "hot dog") and not names_concept("apples", "apple")


def test_a_kind_file_of_another_concept_than_the_runs_is_refused() -> None:
    files = [Path("fruit.txt"), Path("p/hot-dog.synonym.txt")]
    check_kind_files(files, ["apple", "hot dog"])
    with pytest.raises(SettingError, match=r"prompts p/hot-dog\.synonym\.txt: .* one of apple"):
        check_kind_files(files, ["apple"])


def test_kinds_are_generated_only_on_request(run: Run) -> None:
    erase_sd.generate("apple.txt", **QUICK)
    assert prompt_files(run, "erased") == ["apple", "retain"]
    erase_sd.generate("apple.txt", kinds=True, **QUICK)
    kinds = ["apple.synonym", "apple.look-alike", "apple.other-sense"]
    assert (
        prompt_files(run, "original") == prompt_files(run, "erased") == ["apple", "retain", *kinds]
    )


def test_a_kind_file_names_the_run_of_its_concept(run: Run) -> None:
    assert erase_sd.generate("apple.synonym.txt", **QUICK) == Path("runs/apple")
    assert prompt_files(run, "erased") == ["apple.synonym", "retain"]
    with pytest.raises(SettingError, match=r"^prompts dog\.synonym\.txt: "):
        erase_sd.generate("dog.synonym.txt", run="apple", **QUICK)


def test_kinds_without_a_kind_file_beside_the_prompts_are_refused() -> None:
    with pytest.raises(SettingError, match=r"kinds: needs one of p/fig\.synonym\.txt"):
        kind_files_beside([Path("p/fig.txt")])


def test_missing_kinds_end_a_run_before_it_unlearns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts").mkdir()
    Path("prompts/apple.txt").write_text("an apple\n")
    monkeypatch.setattr(sys, "argv", ["erase-sd", "run", "--concept", "apple", "--kinds"])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 1
    assert "--kinds: needs one of prompts/apple.synonym.txt" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_reference_is_the_originals_image_of_the_concept_removed_prompt(run: Run) -> None:
    removed = ("", "a dog", "a park")  # with the seeds and batches of the prompts
    Path("removed.txt").write_text("a cup\na dog\na park\n")
    erase_sd.generate(["apple.txt", "removed.txt"], kinds=True, reference=True, **QUICK)
    images = {(i.variant, i.prompt_file, i.prompt): i for i in run.images()}
    references = [image for image in images.values() if image.variant == "reference"]
    assert [(i.prompt_file, i.prompt) for i in references] == [
        ("apple", prompt) for prompt in PROMPTS["apple"]
    ]
    assert tuple(image.text for image in references) == removed
    for reference in references:
        original = images["original", "apple", reference.prompt]
        for field in ("pair", "seed", "batch", "steps", "guidance", "weights"):
            assert getattr(reference, field) == getattr(original, field)
        assert reference.sha256 != original.sha256 and original.text == original.prompt
    last = images["original", "removed", "a park"]
    assert images["reference", "apple", "an apple in a park"].sha256 == last.sha256


def test_every_image_carries_the_kind_and_the_concept_of_its_prompt(run: Run) -> None:
    erase_sd.generate("apple.txt", kinds=True, **QUICK)
    pairs = {image.prompt_file: image.pair for image in run.images()}
    assert {
        file: (pair.kind, pair.concept, pair.set, pair.mentions) for file, pair in pairs.items()
    } == {
        "apple": ("plain", None, "forget", ("apple",)),
        "apple.synonym": ("synonym", "apple", "forget", ()),
        "apple.look-alike": ("look-alike", "apple", "retain", ()),
        "apple.other-sense": ("other-sense", "apple", "retain", ("apple",)),
        "retain": ("plain", None, "retain", ()),
    }


def test_reference_images_come_from_the_cache_for_another_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase_sd.generate("apple.txt", reference=True, **QUICK)
    before = {path.name: path.read_bytes() for path in run.folder.glob("images/reference/*")}
    generated: list[str] = []
    generate_batch = batches.generate_batch

    def recorded(pipe: Any, texts: list[str], *args: Any) -> Any:
        generated.extend(texts)
        return generate_batch(pipe, texts, *args)

    monkeypatch.setattr(batches, "generate_batch", recorded)
    shutil.rmtree(run.folder / "images")
    erase_sd.generate("apple.txt", reference=True, **QUICK)
    assert len(before) == 3
    assert {p.name: p.read_bytes() for p in run.folder.glob("images/reference/*")} == before
    assert generated == [*PROMPTS["apple"], "a dog"]  # the erased model's alone
    erase_sd.generate("apple.txt", **QUICK)
    assert not list(run.folder.glob("images/reference/*"))


def known_answer(detector: Path, files: list[Path], *_: Any) -> DetectorAnswer:
    """For `detect`: the original shows everything, the erased model no apple and no second dog."""
    shown = {
        ("original", "apple"): "apple dog", ("erased", "apple"): "dog",
        ("reference", "apple"): "dog", ("original", "retain"): "dog", ("erased", "retain"): "dog",
        ("original", "apple.synonym"): "apple dog", ("erased", "apple.synonym"): "apple",
        ("original", "apple.look-alike"): "orange dog", ("erased", "apple.look-alike"): "orange",
        ("original", "apple.other-sense"): "laptop", ("erased", "apple.other-sense"): "",
    }  # fmt: skip
    box = (1.0, 1.0, 9.0, 9.0)
    detections = [
        tuple(Detection(name=name, probability=0.9, box=box) for name in words.split())
        for words in (shown[path.parent.name, path.stem.rpartition("-")[0]] for path in files)
    ]
    return DetectorAnswer(
        names=tuple(CLASSES), size=64, kind="known answers", detections=detections
    )


def scored(run: Run, monkeypatch: pytest.MonkeyPatch, **options: bool) -> ScoresRecord:
    monkeypatch.setattr("erase_sd.scoring.detections.detect", known_answer)
    erase_sd.generate("apple.txt", **options, **QUICK)
    return erase_sd.score("apple")


def plain(rates: tuple[RateComparison, ...]) -> list[RateComparison]:
    """Comparisons of the plain prompts, without their references."""
    return [
        dataclasses.replace(rate, reference=None, reference_change=None)
        for rate in rates
        if rate.kind == "plain"
    ]


def test_kinds_and_reference_add_to_the_scores_and_change_nothing_in_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scored(run, monkeypatch)
    table = (run.folder / "scores.md").read_text()
    assert table.splitlines()[0] == "| " + " | ".join(HEADINGS) + " |"
    assert note_of(before) in table and "Reference" not in table
    after = scored(run, monkeypatch, kinds=True, reference=True)
    for field in ("rates", "by_class", "sweep"):
        assert plain(getattr(after, field)) == list(getattr(before, field))
    assert {rate.kind for rate in after.sweep} == {"plain", "synonym", "look-alike", "other-sense"}
    assert run.scores() == after


def test_the_table_has_a_line_for_each_kind_and_columns_for_the_reference(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scored(run, monkeypatch, kinds=True, reference=True)
    headings, lines = table_of(scores.rates)
    assert headings == HEADINGS + REFERENCE_HEADINGS
    assert "Reference: the original model on the concept-removed prompts" in note_of(scores)
    rates = {line[1]: (line[2], *(cell.split(" ")[0] for cell in line[3:])) for line in lines}
    assert rates == {
        "apple": ("3", "100.0", "0.0", "-100.0", "0.2", "0.0", "+0.0", "1"),
        "retained, same prompts": ("1", "100.0", "100.0", "+0.0", "1", "100.0", "+0.0", "1"),
        "retained, other prompts": ("1", "100.0", "100.0", "+0.0", "1", "", "", ""),
        "apple, synonym prompts": ("1", "100.0", "100.0", "+0.0", "1", "", "", ""),
        "retained, synonym prompts": ("1", "100.0", "0.0", "-100.0", "1", "", "", ""),
        "retained, look-alike prompts": ("3", "100.0", "66.7", "-33.3", "1", "", "", ""),
        "retained, other-sense prompts": ("1", "100.0", "0.0", "-100.0", "1", "", "", ""),
    }
    table = (run.folder / "scores.md").read_text().splitlines()
    assert len({line.count("|") for line in table[: 2 + len(lines)]}) == 1


def test_the_report_judges_by_the_plain_prompts_and_shows_the_kinds(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(run, monkeypatch)
    before = read_report_data(run)
    verdict = verdict_of(before, image_pairs_of(before))
    scores = scored(run, monkeypatch, kinds=True, reference=True)
    after = read_report_data(run)
    pairs = image_pairs_of(after)
    assert verdict_of(after, pairs).judgements == verdict.judgements
    assert after.missing == before.missing == []
    assert {(p.kind, p.outcomes) for p in pairs if "." in p.prompt_file} == {
        ("synonym", ("leaked", "damaged")),
        ("look-alike", ("retained",)),
        ("look-alike", ("damaged",)),
        ("other-sense", ("damaged",)),
    }
    page, index = (path.read_text() for path in report.write_all([run]))
    for label in ("apple, synonym", "retained, look-alike", "orange, look-alike", "reference %"):
        assert label in page
    assert note_of(scores) in html.unescape(re.sub(r"</?span[^>]*>", "", page))
    assert "100.0" in index
