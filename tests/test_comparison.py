"""The grid on tiny real models: what is run, skipped, told of failures, and written."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import erase_sd
from erase_sd.cli import main
from erase_sd.comparison import results as grid_results
from erase_sd.comparison import runner as comparison
from erase_sd.comparison.cell import Shared, attempt, is_done
from erase_sd.comparison.grid import Cell, Spec, cells_of, spec_of
from erase_sd.comparison.rows import HEADER, Row
from erase_sd.comparison.runner import Comparison, compare
from erase_sd.data.flickr30k import read
from erase_sd.errors import DataError, SettingError
from erase_sd.models.presets import Models, resolve
from erase_sd.run import Run
from erase_sd.unlearning.stage import origin, unlearn

OUT = Path("comparison")


def places(tiny: Models) -> dict[str, Any]:
    return {
        "preset": "mini", "model": tiny.model, "revision": None, "clip": tiny.clips[0],
        "data": tiny.data,
    }  # fmt: skip


def prompts(*concepts: str) -> Path:
    """A folder with two prompts for each concept, and a `retain.txt`."""
    folder = Path("prompts")
    folder.mkdir()
    for word in concepts:
        (folder / f"{word}.txt").write_text(f"a dog and a {word}\na {word} in a park\n")
    (folder / "retain.txt").write_text("a cow\n")
    return folder


def shared(tiny: Models, images: bool = True) -> Shared:
    models = resolve(**places(tiny), detector=tiny.detector)
    return Shared(
        places=places(tiny), models=models, origin=origin(models, read(models.pairs())), prompts={word: Path("prompts", f"{word}.txt") for word in ("apple", "chair")},
        images_per_prompt=1, dtype="auto", images=images,
    )  # fmt: skip


def run_grid(tiny: Models, concepts: list[str], methods: list[str], **more: Any) -> Comparison:
    given = {
        "seeds": 1, "out": OUT, "prompts_folder": Path("prompts"), "images": False,
        "images_per_prompt": 1, "dtype": "auto",
    }  # fmt: skip
    return compare(concepts, methods, **given | more, places=places(tiny), detector=tiny.detector)


def read_text(name: str) -> str:
    return (OUT / name).read_text()


def rows() -> list[dict[str, str]]:
    with (OUT / "comparison.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == HEADER
        return list(reader)


def test_a_spec_is_a_method_and_settings_with_one_spelling() -> None:
    spec = spec_of("cliperase:towers=both,consistency=embedding,rate=1e-3,steps=20")
    assert spec == spec_of("cliperase:steps=20,rate=0.001,consistency=embedding,towers=both")
    assert str(spec) == "cliperase:consistency=embedding,rate=0.001,steps=20,towers=both"
    assert spec.settings == {
        "method": "cliperase", "weights": {"consistency": "embedding"}, "rate": 0.001, "steps": 20,
        "towers": "both",
    }  # fmt: skip
    assert str(spec_of("ga")) == "ga" and spec_of("ga").settings == {"method": "ga", "weights": {}}


def test_commas_and_repeated_options_give_the_same_cells() -> None:
    together = cells_of(["apple,bicycle"], ["cliperase:rate=1e-3,steps=2,ga"], 2, OUT)
    apart = cells_of(["apple", "bicycle"], ["cliperase:rate=1e-3,steps=2", "ga", "ga"], 2, OUT)
    assert together == apart and len(apart) == 8
    assert [cell.seed for cell in apart] == [0] * 4 + [1] * 4
    assert apart[0].folder == OUT / "runs/apple/cliperase+rate=0.001+steps=2/seed-0"
    [both] = cells_of(["apple+chair"], ["ga"], 1, OUT)
    assert both.concepts == ("apple", "chair") and both.folder == OUT / "runs/apple+chair/ga/seed-0"


@pytest.mark.parametrize(
    ("concepts", "methods", "seeds", "message"),
    [
        ([" "], ["ga"], 1, "--concepts: needs at least one word"),
        (["apple"], ["ga"], 0, "--seeds: needs at least 1, got 0"),
        (["apple"], [], 1, "--methods: needs at least one of"),
        (["apple"], ["cliperaze"], 1, "--methods cliperaze: unknown, near: cliperase"),
        (["apple"], ["zzz"], 1, "--methods zzz: unknown; needs one of cliperase,"),
        (["apple"], ["ga:step=2"], 1, "ga has no step, near: steps"),
        (["apple"], ["ga:steps"], 1, "needs method:field=value,field=value"),
        (["apple"], ["ga:steps=0"], 1, "--steps: needs at least 1, got 0"),
        (["apple"], ["ga:towers=left"], 1, "--towers left: needs text or both"),
        (["apple"], ["cliperase:forget_weight=much"], 1, "--weight forget_weight: needs a"),
        (["apple"], ["ga:steps=2.5"], 1, "--methods ga:steps=2.5: steps cannot be 2.5"),
        (["apple"], ["ga:rate=fast"], 1, "--methods ga:rate=fast: rate cannot be fast"),
        (["apple+apple"], ["ga"], 1, "named twice"),
    ],
)
def test_what_no_cell_can_be_made_of_is_one_line(
    concepts: list[str], methods: list[str], seeds: int, message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        cells_of(concepts, methods, seeds, OUT)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_prompt_file_is_told_before_anything_starts(tiny: Models) -> None:
    folder = prompts("apple")
    with pytest.raises(DataError, match=r"prompts/chair\.txt: no such file"):
        run_grid(tiny, ["apple", "chair"], ["ga"], images=True)
    (folder / "retain.txt").unlink()
    with pytest.raises(DataError, match=r"prompts/retain\.txt: no such file"):
        run_grid(tiny, ["apple"], ["ga"], images=True)
    assert not OUT.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--concepts", "apple", "chair", "--methods", "ga", "kl:steps=2", "--seeds", "2"],
        ["--seeds", "2", "--methods", "ga", "--methods", "kl:steps=2", "--concepts", "apple,chair"],
    ],
)
def test_options_take_words_up_to_the_next_option(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def keep(concepts: list[str], methods: list[str], **more: Any) -> Comparison:
        seen.append(cells_of(concepts, methods, more["seeds"], OUT))
        return Comparison(OUT, [], [])

    monkeypatch.setattr(erase_sd, "compare", keep)
    monkeypatch.setattr(sys, "argv", ["erase-sd", "compare", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert seen == [cells_of(["apple", "chair"], ["ga", "kl:steps=2"], 2, OUT)]


def test_words_after_other_options_are_usage_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["compare", "--concepts", "apple", "--methods", "ga", "--seeds", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["erase-sd", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2


def test_a_grid_leaves_rows_and_tables_goes_on_after_a_failure_and_is_not_run_twice(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["ga:steps=2", "ga:rate=1e30,steps=2"]
    found = run_grid(tiny, ["apple", "chair"], methods)
    assert [str(cell) for cell, _ in found.failed] == [
        "apple ga:rate=1e+30,steps=2 seed 0", "chair ga:rate=1e+30,steps=2 seed 0",
    ]  # fmt: skip
    assert all("diverged" in reason for _, reason in found.failed)
    known = rows()
    done = {(r["concept"], r["overrides"]) for r in known if r["measure"] == "unlearn_seconds"}
    assert done == {("apple", "steps=2"), ("chair", "steps=2")}
    failed = [row for row in known if row["measure"] == "failed"]
    assert len(failed) == 2 and all("diverged" in row["reason"] for row in failed)
    assert {row["measure"] for row in known} >= {
        "peak_memory_mb", "steps", "validation_forget", "zero_shot_prediction", "image_retrieval_r1",
    }  # fmt: skip
    text = (OUT / "comparison.md").read_text()
    assert "Zero-shot prediction" in text and "Image retrieval" in text and "## Failed" in text
    assert (OUT / "pareto.png").is_file() and not (OUT / "several.png").exists()

    ran: list[str] = []
    monkeypatch.setattr(comparison, "_in_own_process", lambda cell, *_: ran.append(str(cell)) or "")
    run_grid(tiny, ["apple", "chair"], methods)
    assert ran == [str(cell) for cell, _ in found.failed]


def killed(*_: object) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_a_killed_cell_is_a_row_and_exit_status_1(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "attempt", killed)
    words = ["--concepts", "apple", "--methods", "ga", "--seeds", "1", "--skip-images"]
    for name in ("model", "clip", "data"):
        words += [f"--{name}", str(places(tiny)[name])]
    monkeypatch.setattr(sys, "argv", ["erase-sd", "compare", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    line = "erase-sd: apple ga seed 0: its process was killed (out of memory?)\n"
    assert capsys.readouterr().err == line
    [row] = rows()
    assert row["measure"] == "failed" and "killed" in row["reason"]


def test_a_bug_of_one_method_is_a_reason_with_its_place(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise ZeroDivisionError("a mean\nof nothing")

    monkeypatch.setattr(erase_sd, "unlearn", broken)
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    reason = attempt(cell, shared(tiny))
    assert reason.startswith("ZeroDivisionError: a mean of nothing (test_comparison.py:")


def test_a_cell_with_images_has_detection_rates_and_is_done_until_its_prompts_change(
    tiny: Models,
) -> None:
    folder = prompts("apple", "chair")
    [cell] = cells_of(["apple+chair"], ["ga:steps=2"], 1, OUT)
    assert not is_done(cell, shared(tiny))
    assert attempt(cell, shared(tiny)) == ""
    assert is_done(cell, shared(tiny)) and is_done(cell, shared(tiny, images=False))
    found = {(row.measure, row.group, row.arm): row for row in grid_results.rows_of(cell)}
    assert found["detection_rate", "target", "erased"].n == 4  # two prompts of each concept
    assert found["detection_rate", "retained_same", "original"].n == 2  # a dog beside each
    assert found["detection_rate", "retained_other", "original"].n == 1  # the cow, once
    assert {row.concept for row in found.values()} == {"apple+chair"}
    assert not run_grid(tiny, ["apple+chair"], ["ga:steps=2"], images=True).failed
    [command] = [line for line in read_text("comparison.md").splitlines() if "erase-sd" in line]
    given = {name: Path(str(getattr(tiny, name))).name for name in ("model", "data", "detector")}
    assert command == (
        "    erase-sd compare --concepts apple+chair --methods ga:steps=2 --seeds 1 "
        f"--model {given['model']} --data {given['data']} --detector {given['detector']} "
        f"--clip {Path(tiny.clips[0]).name} --images-per-prompt 1 --dtype auto "
        "--prompts-folder prompts"
    )
    with Image.open(OUT / "apple+chair.png") as sheet:  # the original's row and one of images below
        assert sheet.height == 2 * (32 + 2) + 8 and sheet.width > 4 * (32 + 2)
    (folder / "apple.txt").write_text("an apple\n")
    assert not is_done(cell, shared(tiny)) and is_done(cell, shared(tiny, images=False))


def test_a_run_of_other_settings_or_without_its_evaluation_is_not_done(tiny: Models) -> None:
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    assert attempt(cell, shared(tiny, images=False)) == ""
    other = Cell(cell.concepts, Spec("ga", (("steps", 3),)), 0, cell.folder)
    assert not is_done(other, shared(tiny, images=False))
    assert "began with steps 2, now it is 3" in attempt(other, shared(tiny, images=False))
    (cell.folder / "evaluation.json").unlink()
    assert not is_done(cell, shared(tiny, images=False))


def test_a_run_that_began_or_was_evaluated_with_something_else_is_not_done(tiny: Models) -> None:
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    here, path = shared(tiny, images=False), cell.folder / "evaluation.json"
    assert attempt(cell, here) == "" and is_done(cell, here)
    for field in ("clip", "data", "model"):
        other = dataclasses.replace(here, origin=here.origin | {field: "other bytes"})
        assert not is_done(cell, other)
    own = path.read_text()
    found = json.loads(own)
    found["about"]["data"]["kind"] = "a folder for each class"
    path.write_text(json.dumps(found))
    assert not is_done(cell, here)
    assert attempt(cell, here) == "" and is_done(cell, here)
    assert json.loads(path.read_text())["rows"] == json.loads(own)["rows"]


def test_a_cell_that_fails_gives_nothing_but_its_reason_and_none_its_images_unasked() -> None:
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    rates = {"group": "target", "arm": "erased", "found": 1, "n": 4}
    assert [row.value for row in scored(cell, rates)] == [0.25]
    assert grid_results.rows_of(cell, images=False) == []
    [row] = grid_results.rows_of(cell, reason="no luck")
    assert (row.measure, row.reason, row.value) == ("failed", "no luck", None)


def test_a_run_whose_looks_were_all_rolled_back_has_everything_left(tiny: Models) -> None:
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    settings = dataclasses.replace(cell.settings(), retain_floor=1.0)
    unlearn(settings, resolve(**places(tiny)), Run(cell.folder))
    found = {row.measure: row.value for row in grid_results.rows_of(cell)}
    assert (found["validation_forget"], found["validation_retain"]) == (1.0, 1.0)


def test_the_seconds_of_a_run_that_went_on_are_not_its_whole_time() -> None:
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    cell.folder.mkdir(parents=True)
    entry = {"status": "done", "seconds": 3.0, "peak_memory_mb": 9, "steps": 20, "stopped": "steps"}
    for more, seconds in (({}, 3.0), ({"resumed_at": 10}, None)):
        (cell.folder / "run.json").write_text(json.dumps({"stages": {"unlearn": entry | more}}))
        assert grid_results.rows_of(cell)[0].value == seconds


def test_what_no_image_could_be_drawn_with_is_told_before_anything_starts(tiny: Models) -> None:
    prompts("apple")
    with pytest.raises(SettingError, match="--images-per-prompt: needs at least 1, got 0"):
        run_grid(tiny, ["apple"], ["ga"], images=True, images_per_prompt=0)
    assert not OUT.exists()


def scored(cell: Cell, *given: dict[str, Any]) -> list[Row]:
    """Rows of a run that holds these score rows alone."""
    cell.folder.mkdir(parents=True)
    stages = {"score": {"status": "done"}}
    (cell.folder / "run.json").write_text(json.dumps({"stages": stages}))
    (cell.folder / "scores.json").write_text(json.dumps({"rows": given}))
    return grid_results.rows_of(cell)


def test_rates_of_several_concepts_come_together_and_other_arms_and_kinds_stay_out() -> None:
    [cell] = cells_of(["apple+chair"], ["ga"], 1, OUT)
    target = {"group": "target", "arm": "erased"}
    same = {"group": "retained_same", "arm": "erased"}
    other = {"group": "retained_other", "arm": "erased"}
    rows = scored(
        cell,
        target | {"found": 3, "n": 10}, target | {"found": 5, "n": 30},
        same | {"found": 8, "n": 10}, same | {"found": 6, "n": 10},
        other | {"found": 7, "n": 10}, other | {"found": 7, "n": 10},
        target | {"found": 9, "n": 9, "kind": "synonym"},
        target | {"found": 9, "n": 9, "arm": "reference"},
    )  # fmt: skip
    assert [(row.group, row.value, row.n) for row in rows] == [
        ("target", 0.2, 40), ("retained_same", 0.7, 20), ("retained_other", 0.7, 10),
    ]  # fmt: skip


def test_a_damaged_run_folder_is_a_row_with_its_reason() -> None:
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    cell.folder.mkdir(parents=True)
    (cell.folder / "run.json").write_text("{")
    [row] = grid_results.rows_of(cell)
    assert row.measure == "failed" and "damaged" in row.reason


@pytest.mark.slow
def test_two_processes_share_the_cells_and_write_the_same_as_one(tiny: Models) -> None:
    words = [
        "compare", "--concepts", "apple", "chair", "--methods", "ga:steps=2", "kl:steps=2",
        "--seeds", "1", "--skip-images",
    ]  # fmt: skip
    for name in ("model", "clip", "data"):
        words += [f"--{name}", str(places(tiny)[name])]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "erase_sd"]
    answer = subprocess.run(
        [sys.executable, *launch, *words], capture_output=True, text=True, check=False,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "240"},  # the bar speaks in a terminal only
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "waits for the others" in answer.stderr  # said only where there are several processes
    assert answer.stdout.count("Zero-shot prediction") == 1  # the main process alone speaks
    shared_out = [row for row in rows() if row["measure"].startswith(("zero", "image", "text"))]
    shutil.move(OUT, "by-two")
    assert not run_grid(tiny, ["apple", "chair"], ["ga:steps=2", "kl:steps=2"]).failed
    alone = [row for row in rows() if row["measure"].startswith(("zero", "image", "text"))]
    assert alone == shared_out and len({row["concept"] for row in alone}) == 2
