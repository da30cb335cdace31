"""The report says what the run's files say, also where they are damaged; in a browser:
test_report_browser.py."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_run import APPLE, MARKUP, RETAIN, make

from erase_sd import report
from erase_sd.cli import main
from erase_sd.errors import RunError
from erase_sd.models.presets import Models
from erase_sd.report.data import read
from erase_sd.report.shots import shots_of
from erase_sd.run import Run


@pytest.fixture(scope="module")
def made(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tiny, tmp_path_factory.mktemp("report"))


@pytest.fixture
def run(made: Run) -> Run:
    """A copy of the scored run, to damage."""
    shutil.copytree(made.folder, "runs/apple")
    return Run(Path("runs/apple"))


class Page(HTMLParser):
    """A page's elements and its visible words."""

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
    images = 2 * len(APPLE + RETAIN)
    assert len(page.all("img")) >= images
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


def test_alt_texts_say_arm_prompt_seed_and_what_was_detected(run: Run) -> None:
    alts = [image["alt"] for image in Page(report.write(run)).all("img")]
    assert "Original image of “a dog and an apple”, seed 1001: apple 0.90, dog 0.80" in alts
    assert "Erased image of “an apple”, seed 1000: nothing detected" in alts


def test_boxes_below_the_threshold_are_not_drawn(run: Run) -> None:
    text = Page(report.write(run)).text
    assert "apple 0.90" in text and "kite 0.20" not in text


def test_each_pair_has_its_kind_and_outcomes(run: Run) -> None:
    shots = {shot.prompt: shot for shot in shots_of(read(run))}
    assert {prompt: shot.outcomes for prompt, shot in shots.items()} == {
        "an apple": ("erased",),
        "a dog and an apple": ("leaked", "damaged"),
        MARKUP: ("erased", "kept"),
        "an apple in a park": ("undecided",),
        "a green pomaceous fruit": ("leaked",),
        "an orange": ("kept",),
        "a couch": ("damaged",),
    }
    assert [shot.kind for shot in shots.values()] == [
        "direct", "direct", "direct", "direct", "synonym", "look-alike", "other",
    ]  # fmt: skip


def test_the_tables_are_those_of_the_scores(run: Run) -> None:
    text = Page(report.write(run)).text
    scores = json.loads((run.folder / "scores.json").read_text())
    for row in scores["rows"] + scores["by_class"] + scores["sweep"]:
        assert f"{100 * row['rate']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text
    assert "known answers" in text  # the detector
    assert "orange, elsewhere (look-alike)" in text


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    """Loses the second half of a file."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


@pytest.mark.parametrize(
    ("harm", "said", "shown"),
    [
        (without("scores.json"), "scores.json: missing", "leaked"),
        (cut("scores.json"), "scores.json: damaged, no valid JSON", "leaked"),
        (without("detections.jsonl"), "detections.jsonl is missing", "too few to judge"),
        (cut("detections.jsonl"), "damaged, no valid JSON", "too few to judge"),
        (without("train.jsonl"), "train.jsonl is missing", "leaked"),
        (without("erased/erase.json"), "erased/erase.json: missing", "leaked"),
        (without("images.jsonl"), "images.jsonl is missing or empty", "too few to judge"),
        (without("images/erased/apple-0001.png"), "1 of 14 images are missing", "leaked"),
        (cut("images/original/apple-0001.png"), "1 of 14 images are missing or damaged", "leaked"),
    ],
)
def test_a_damaged_run_says_what_is_missing_and_shows_the_rest(
    run: Run, harm: Callable[[Path], None], said: str, shown: str
) -> None:
    assert said not in Page(report.write(run)).text
    harm(run.folder)
    page = Page(report.write(run))
    assert said in page.text and shown in page.text and "Settings and provenance" in page.text


def test_a_lost_image_is_never_replaced_by_another(run: Run) -> None:
    Image.new("RGB", (32, 32)).save(run.folder / "images/erased/apple-0000.png")
    page = Page(report.write(run))
    assert "erased image changed since it was made" in page.text
    assert "Erased image of “an apple”, seed 1000" not in " ".join(
        i["alt"] for i in page.all("img")
    )


def test_an_unfinished_run_says_which_stage_is_next(run: Run) -> None:
    stages = run.manifest["stages"]
    run.update(stages={key: stages[key] for key in ("unlearn", "generate")})
    text = Page(report.write(run)).text
    assert "Not judged yet." in text and "Not scored yet (erase-sd score --run runs/apple)" in text
    assert "leaked" not in text and MARKUP in text
    run.update(stages={"unlearn": stages["unlearn"], "generate": {"status": "running"}})
    rows = (run.folder / "images.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "images.jsonl").write_text("".join(rows[:9]))
    text = Page(report.write(run)).text
    assert "generate is not finished" in text and "erased image not drawn yet" in text
    run.update(stages={"unlearn": stages["unlearn"] | {"status": "running"}})
    text = Page(report.write(run)).text
    assert "unlearn is not finished" in text and "Training" in text and MARKUP not in text


def test_the_rows_that_are_whole_are_shown(run: Run) -> None:
    path = run.folder / "images.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["{}", *lines[1:]]) + "\n")
    assert "images.jsonl: 1 rows are damaged and left out" in Page(report.write(run)).text


def test_several_runs_have_an_index_with_links_rates_and_the_front(run: Run) -> None:
    shutil.copytree(run.folder, "runs/other apple")
    first, second, index = report.write_all([run, Run(Path("runs/other apple"))])
    page = Page(index)
    links = [a["href"] for a in page.all("a") if "report.html" in a["href"]]
    assert links[:2] == ["apple/report.html", "other%20apple/report.html"]
    assert first.is_file() and second.is_file()
    assert "80.0 → 40.0" in page.text  # apples: 4 of 5, then 2
    assert len(page.all("svg")) == 1 and "concept detected, %" in page.text


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
    ("harm", "line"),
    [
        (lambda run: shutil.rmtree(run.folder), "runs/apple: no run folder"),
        (lambda run: (run.folder / "run.json").unlink(), "runs/apple: no run folder (no run.json)"),
        (lambda run: (run.folder / "run.json").write_text("{"), "runs/apple/run.json: damaged"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(
    run: Run,
    harm: Callable[[Run], None],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    harm(run)
    with pytest.raises(RunError, match="1"):
        call("--run", "apple", monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert said.startswith(f"erase-sd: {line}") and said.count("\n") == 1
    assert not (run.folder / "report.html").exists()
