"""The report shows what the run's files hold, even if some are damaged; its behaviour in a browser is
tested in test_report_browser.py."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_run import MARKUP, PAIRS, known_answers, scored_run

import erase_sd
from erase_sd import report
from erase_sd.cli import main
from erase_sd.errors import RunError
from erase_sd.models.presets import Models
from erase_sd.models.recorded import models_of_run
from erase_sd.report.data import read_report_data
from erase_sd.report.image_pairs import image_pairs_of
from erase_sd.run import Run
from erase_sd.run.records import Stages
from erase_sd.scoring import stage as scoring


@pytest.fixture(scope="module")
def original_run(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored_run(tiny, tmp_path_factory.mktemp("report"))


@pytest.fixture
def run(original_run: Run) -> Run:
    """A copy of the scored run, to damage."""
    shutil.copytree(original_run.folder, "runs/apple")
    return Run(Path("runs/apple"))


class Page(HTMLParser):
    """The elements and the visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.elements, self.inside = "", [], ""
        self.words: dict[str, str] = {}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            words = " ".join(data.split()) + " "
            self.text += words
            self.words[self.inside] = self.words.get(self.inside, "") + words

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_one_small_file_that_loads_nothing(run: Run) -> None:
    path = report.write(run)
    page = Page(path)
    assert path == run.folder / "report.html" and path.stat().st_size < 1_000_000
    assert len(page.all("img")) >= 2 * PAIRS
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", path.read_text())
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_same_run_gives_the_same_bytes(run: Run) -> None:
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first
    report.write_all([run])
    index = Path("runs/index.html").read_bytes()
    report.write_all([run])
    assert Path("runs/index.html").read_bytes() == index


def test_markup_in_prompts_and_names_is_text(run: Run) -> None:
    name = "<img src=x onerror=alert(1)> $x$ & co"
    run.folder.rename(run.folder.with_name(name))
    run = Run(run.folder.with_name(name))
    path, index = report.write_all([run])
    for page in (Page(path), Page(index)):
        assert name in page.text and MARKUP in page.text
        assert "red" not in page.words.get("b", "")  # the boxes' labels
        assert all(image["src"].startswith("data:") for image in page.all("img"))
        assert not any(
            key.startswith("on") for _, attributes in page.elements for key in attributes
        )
    alts = [image["alt"] for image in Page(path).all("img")]
    assert any(MARKUP in alt for alt in alts)


def test_alt_texts_name_variant_prompt_seed_and_detections(run: Run) -> None:
    alts = [image["alt"] for image in Page(report.write(run)).all("img")]
    assert "Original image of “a dog and an apple”, seed 1001: apple 0.90, dog 0.80" in alts
    assert "Erased image of “an apple”, seed 1000: nothing detected" in alts


def test_detections_below_the_threshold_are_not_shown(run: Run) -> None:
    text = Page(report.write(run)).text
    assert "apple 0.90" in text and "kite 0.20" not in text


def test_each_pair_has_its_kind_and_outcomes(run: Run) -> None:
    pairs = {pair.prompt: pair for pair in image_pairs_of(read_report_data(run))}
    assert {prompt: pair.outcomes for prompt, pair in pairs.items()} == {
        "an apple": ("erased",),
        "a dog and an apple": ("leaked", "damaged"),
        MARKUP: ("erased", "retained"),
        "an apple in a park": ("undecided",),
        "a green pomaceous fruit": ("leaked",),
        "an orange": ("retained",),
        "a couch": ("damaged",),
    }
    assert [pair.kind for pair in pairs.values()] == [
        "named", "named", "named", "named", "synonym", "look-alike", "other",
    ]  # fmt: skip


def test_the_tables_are_those_of_the_scores(run: Run) -> None:
    text = Page(report.write(run)).text
    scores = json.loads((run.folder / "scores.json").read_text())
    for comparison in scores["rates"] + scores["by_class"] + scores["sweep"]:
        for rate in (comparison["original"], comparison["erased"]):
            value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
            assert f"{value:.1f} [{low:.1f}, {high:.1f}]" in text
    assert "known answers" in text  # the detector
    assert "orange, other prompts (look-alike)" in text


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    """Removes the second half of a file."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def better_rate(folder: Path) -> None:
    """Edits a rate, but not the count that it comes from."""
    path = folder / "scores.json"
    scores = json.loads(path.read_text())
    scores["rates"][0]["erased"]["value"] = 0.01
    path.write_text(json.dumps(scores))


@pytest.mark.parametrize(
    ("damage", "message", "shown"),
    [
        (delete("scores.json"), "scores.json: missing", "leaked"),
        (cut("scores.json"), "scores.json: damaged", "leaked"),
        (better_rate, r"scores.json: damaged .*images is not a rate of 0.01", "leaked"),
        (delete("detections.jsonl"), "detections.jsonl: missing", "too few detections"),
        (cut("detections.jsonl"), r"detections.jsonl:\d+: damaged", "too few detections"),
        (delete("train.jsonl"), "train.jsonl: missing", "leaked"),
        (delete("erased/erase.json"), "erased/erase.json: missing", "leaked"),
        (delete("images.jsonl"), "images.jsonl: missing or empty", "too few detections"),
        (delete("images/erased/apple-0001.png"), "1 of 14 images are missing", "leaked"),
        (cut("images/original/apple-0001.png"), "1 of 14 images are missing or damaged", "leaked"),
    ],
)
def test_a_damaged_or_missing_file_is_named_and_the_rest_is_shown(
    run: Run, damage: Callable[[Path], None], message: str, shown: str
) -> None:
    assert not re.search(message, Page(report.write(run)).text)
    damage(run.folder)
    text = Page(report.write(run)).text
    assert re.search(message, text) and shown in text and "Settings and provenance" in text


def test_an_image_that_is_not_the_generated_one_is_never_shown(run: Run) -> None:
    Image.new("RGB", (32, 32)).save(run.folder / "images/erased/apple-0000.png")
    page = Page(report.write(run))
    assert "erased image changed since it was generated" in page.text
    assert "Erased image of “an apple”, seed 1000" not in " ".join(
        i["alt"] for i in page.all("img")
    )


def test_an_unfinished_run_names_the_next_stage_and_its_command(run: Run) -> None:
    stages = run.record.stages
    assert stages.unlearn and stages.generate
    run.update(stages=dataclasses.replace(stages, score=None))
    text = Page(report.write(run)).text
    assert "Not judged yet." in text and "Not scored yet (erase-sd score --run runs/apple)" in text
    assert "leaked" not in text and MARKUP in text
    running = dataclasses.replace(stages.generate, status="running")
    run.update(stages=Stages(unlearn=stages.unlearn, generate=running))
    rows = (run.folder / "images.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "images.jsonl").write_text("".join(rows[:9]))
    text = Page(report.write(run)).text
    assert "generate is still running" in text and "erased image not generated yet" in text
    run.update(stages=Stages(unlearn=dataclasses.replace(stages.unlearn, status="running")))
    text = Page(report.write(run)).text
    assert "unlearn is still running" in text and "Training" in text and MARKUP not in text


def test_a_damaged_row_is_named_by_its_line(run: Run) -> None:
    path = run.folder / "images.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{}", *lines[2:]]) + "\n")
    assert "images.jsonl:2: damaged" in Page(report.write(run)).text


def test_a_run_with_two_text_encoders_shows_both_training_curves(run: Run) -> None:
    stages = run.record.stages
    assert stages.unlearn
    encoders = stages.unlearn.encoders | {"text_encoder_2": stages.unlearn.encoders["text_encoder"]}
    unlearned = dataclasses.replace(stages.unlearn, encoders=encoders)
    run.update(stages=dataclasses.replace(stages, unlearn=unlearned))
    assert "train_2.jsonl: missing" in Page(report.write(run)).text
    charts = len(Page(run.folder / "report.html").all("svg"))
    shutil.copy(run.folder / "train.jsonl", run.folder / "train_2.jsonl")
    page = Page(report.write(run))
    assert charts > 0 and len(page.all("svg")) == 2 * charts
    assert "text_encoder_2" in page.words["h3"] and "train_2.jsonl: missing" not in page.text


def test_the_index_links_to_every_run_with_its_rates_and_shows_the_trade_off(run: Run) -> None:
    shutil.copytree(run.folder, "runs/other apple")
    first, second, index = report.write_all([run, Run(Path("runs/other apple"))])
    page = Page(index)
    links = [a["href"] for a in page.all("a") if "report.html" in a["href"]]
    assert links[:2] == ["apple/report.html", "other%20apple/report.html"]
    assert first.is_file() and second.is_file()
    assert "75.0 → 25.0" in page.text  # apples: 3 of 4, then 1
    assert len(page.all("svg")) == 1 and "concept detected, %" in page.text


@pytest.fixture
def other(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run, whose images can be scored without a detector."""
    monkeypatch.setattr("erase_sd.scoring.detections.detect", known_answers)
    copy = Run(Path("runs/other"))
    shutil.copytree(run.folder, copy.folder)
    return copy


def test_runs_of_different_settings_are_named_beside_their_rates(
    run: Run, other: Run, caplog: pytest.LogCaptureFixture
) -> None:
    *_, index = report.write_all([run, other])
    assert "The runs differ" not in Page(index).text
    erase_sd.score()
    assert caplog.text == ""
    generated = run.generated().settings
    settings = generated | {"steps": 3, "prompts": generated["prompts"] | {"retain.txt": "0"}}
    stages = dataclasses.replace(
        other.stages, generate=dataclasses.replace(other.generated(), settings=settings)
    )
    other.update(stages=stages)
    *_, index = report.write_all([run, other])
    line = "he runs differ in steps, prompts retain.txt, on which their rates depend"
    assert line in Page(index).text
    erase_sd.score()
    assert line in caplog.text


def test_runs_whose_detector_reads_its_words_with_another_text_encoder_are_named_too(
    run: Run, other: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for own, words in ((run, "one"), (other, "another")):
        Path(words).write_text(words)
        models = dataclasses.replace(models_of_run(own), detector_text=Path(words))
        scoring.score(own, models)
        own.update(models=own.record.models | {"detector_text": words})
    *_, index = report.write_all([run, other])
    line = "he runs differ in detector text, on which their rates depend"
    assert line in Page(index).text
    scores = erase_sd.score()
    assert line in caplog.text
    assert len(set(map(str, scores.detectors))) == 2


def call(*words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["erase-sd", "report", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    if caught.value.code:
        raise RunError(str(caught.value.code))


def test_the_command_writes_one_page_for_one_run_and_an_index_for_all(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("--run", "apple", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "runs/apple/report.html\n"
    assert not Path("runs/index.html").exists()
    call(monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "runs/apple/report.html\nruns/index.html\n"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: shutil.rmtree(run.folder), "runs/apple: not a run folder"),
        (
            lambda run: (run.folder / "run.json").unlink(),
            "runs/apple: not a run folder (no run.json)",
        ),
        (lambda run: (run.folder / "run.json").write_text("{"), "runs/apple/run.json: damaged"),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused_in_one_line(
    run: Run,
    damage: Callable[[Run], None],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(run)
    with pytest.raises(RunError, match="1"):
        call("--run", "apple", monkeypatch=monkeypatch)
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"erase-sd: {line}") and stderr.count("\n") == 1
    assert not (run.folder / "report.html").exists()
