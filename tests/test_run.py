"""A run folder has one writer at a time, and no stage rests on an outdated one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erase_sd import runtime
from erase_sd.data.concept import Concept
from erase_sd.errors import RunError, SettingError
from erase_sd.run import Run, run_folder
from erase_sd.run.folder import FORMAT, STAGES
from erase_sd.run.records import Origin, StageName

HOLDER = """
import sys
from pathlib import Path
from erase_sd.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


# What an unlearning records beside its settings.
BEGINS: dict[str, Any] = {
    "concepts": [{"name": "apple", "synonyms": [], "keep_senses": []}],
    "origin": {"model": "m", "clip": ["c"], "data": "d", "images": None, "missing_images": 0},
}


def finish(run: Run, *stages: StageName) -> None:
    for stage in stages:
        with run.stage(stage, {"seed": 0}, **(BEGINS if stage == "unlearn" else {})):
            pass


def states(run: Run) -> dict[str, str]:
    return {stage: run.status(stage) for stage in STAGES}


def test_a_stage_is_missing_then_running_then_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "peak_memory", lambda: 7_000_000)  # 0 on a GPU that is not used
    run = Run(tmp_path / "apple")
    assert run.status("unlearn") == "missing"
    with run.stage("unlearn", {"seed": 7}, **BEGINS) as entry:
        assert run.status("unlearn") == "running"
        running = run.record.stages.unlearn
        assert running is not None and running.settings == {"seed": 7}
        entry["encoders"] = {
            "text_encoder": {
                "steps": 3, "stopped": "steps", "resumed_at": 0, "batch_sizes": [4, 8],
                "held_out": {"retained_fidelity": 1.0},
            }
        }  # fmt: skip
    done = run.unlearned()
    assert done.encoders["text_encoder"].steps == 3
    assert done.settings == {"seed": 7} and done.concepts == (Concept("apple"),)
    assert done.origin == Origin(model="m", clip=("c",), data="d")
    assert done.seconds is not None and done.peak_memory_mb == 7
    assert "python" in run.record.versions


def test_a_stage_that_raises_is_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with pytest.raises(KeyboardInterrupt), run.stage("unlearn", {}, **BEGINS):
        raise KeyboardInterrupt
    assert run.status("unlearn") == "missing"
    with run.lock():  # and the folder is free again
        pass


@pytest.mark.parametrize("change", ["added", "rewritten", "replaced", "removed"])
def test_a_stage_that_fails_after_it_changed_a_file_stays_running(
    tmp_path: Path, change: str
) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn", "generate")
    image = run.folder / "images" / "erased" / "apple-0000.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"old")
    time = image.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt), run.stage("generate", {"seed": 1}):
        if change == "added":
            image.with_stem("apple-0001").touch()
        elif change == "rewritten":
            os.utime(image, ns=(time, time + 1000))
        elif change == "replaced":  # within the resolution of the clock
            image.with_stem("new").write_bytes(b"new")
            os.utime(image.with_stem("new"), ns=(time, time))
            image.with_stem("new").replace(image)
        else:
            image.unlink()
        raise KeyboardInterrupt
    assert states(run) == {"unlearn": "done", "generate": "running", "score": "missing"}


def test_a_stage_begun_anew_drops_the_later_ones(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn", "generate", "score")
    assert states(run) == {"unlearn": "done", "generate": "done", "score": "done"}
    with run.stage("generate", {"seed": 1}):
        assert states(run) == {"unlearn": "done", "generate": "running", "score": "missing"}
    assert states(run) == {"unlearn": "done", "generate": "done", "score": "missing"}
    with run.stage("unlearn", {"seed": 0}, **BEGINS):
        assert states(run) == {"unlearn": "running", "generate": "missing", "score": "missing"}


def test_an_interrupted_unlearning_resumes_with_the_same_settings(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    settings = {"learning_rate": 2e-4, "towers": None}
    with pytest.raises(KeyboardInterrupt), run.stage("unlearn", settings, **BEGINS):
        raise KeyboardInterrupt
    with run.stage("unlearn", settings, **BEGINS):
        pass
    assert run.status("unlearn") == "done"


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"learning_rate": 0.2, "seed": 0}, "learning_rate 0.1, now it is 0.2"),
        ({"learning_rate": 0.1}, "seed 0, now it is null"),
        ({"learning_rate": 0.1, "seed": 0, "towers": "both"}, 'towers null, now it is "both"'),
    ],
)
def test_other_settings_are_refused_by_the_field_that_differs(
    tmp_path: Path, now: dict[str, Any], message: str
) -> None:
    run = Run(tmp_path / "apple")
    with run.stage("unlearn", {"learning_rate": 0.1, "seed": 0}, **BEGINS):
        pass
    before = run.record
    with pytest.raises(RunError) as error, run.stage("unlearn", now, **BEGINS):
        pytest.fail("the stage began")
    assert str(run.folder) in str(error.value) and message in str(error.value)
    assert run.record == before


def test_later_stages_may_begin_with_other_settings(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn", "generate")
    with run.stage("generate", {"seed": 5}):
        pass
    assert run.generated().settings == {"seed": 5}


def test_unlearning_from_other_data_is_refused_by_the_hash_that_differs(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn")
    other = BEGINS | {"origin": BEGINS["origin"] | {"data": "e"}}
    with (
        pytest.raises(RunError, match='data "d", now it is "e"'),
        run.stage("unlearn", {"seed": 0}, **other),
    ):
        pytest.fail("the stage began")


def test_unlearning_other_concepts_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn")
    other = BEGINS | {"concepts": [BEGINS["concepts"][0] | {"synonyms": ["pippin"]}]}
    with (
        pytest.raises(
            RunError, match=r"began with concepts \[\{.*\}\], now it is \[.{56}\.\.\.; use"
        ),
        run.stage("unlearn", {"seed": 0}, **other),
    ):
        pytest.fail("the stage began")


def test_of_several_settings_that_differ_the_method_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with run.stage("unlearn", {"forget_threshold": 0.1, "method": "cliperase"}, **BEGINS):
        pass
    with (
        pytest.raises(RunError, match='began with method "cliperase", now it is "ga"'),
        run.stage("unlearn", {"forget_threshold": None, "method": "ga"}, **BEGINS),
    ):
        pytest.fail("the stage began")


def test_a_stage_that_is_not_done_is_refused_with_what_to_run_first(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with pytest.raises(RunError, match=r"not a run folder \(no run.json\); unlearn first"):
        run.unlearned()
    with (
        run.stage("unlearn", {}, **BEGINS),
        pytest.raises(RunError, match="unlearn is running; unlearn first"),
    ):
        run.unlearned()
    assert run.unlearned() == run.record.stages.unlearn


def test_an_update_keeps_everything_else(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn")
    run.update(models={"preset": "mini"})
    assert run.status("unlearn") == "done"
    finish(run, "generate")  # as does a stage
    assert run.record.models == {"preset": "mini"}


def test_a_run_of_another_format_has_to_be_erased_again(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1, "stages": {}}')
    with pytest.raises(RunError, match=f"format 1, this version reads {FORMAT}; unlearn again"):
        Run(tmp_path).status("unlearn")


def test_a_run_of_the_first_version_has_to_be_erased_again(tmp_path: Path) -> None:
    old = {"stages": {"unlearn": {"status": "done", "settings": {"rate": 0.001}}}, "versions": {}}
    (tmp_path / "run.json").write_text(json.dumps(old))
    with pytest.raises(RunError, match=r"format: Field required\); unlearn again"):
        Run(tmp_path).status("unlearn")


def test_image_rows_of_the_wrong_shape_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "images.jsonl").write_text('{"file": "images/original/a-0000.png"}\n')
    with pytest.raises(RunError, match=r"images\.jsonl:1: damaged or of another version \(variant"):
        Run(tmp_path).images()


def test_one_process_writes_and_a_killed_one_releases_the_lock(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError) as error, run.stage("unlearn", {}, **BEGINS):
            pytest.fail("two writers")
        assert str(error.value).startswith(f"{run.folder}: in use by process {holder.pid} on ")
        assert len(str(error.value).splitlines()) == 1
        assert run.status("unlearn") == "missing"
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
        with run.lock():
            assert f"process {os.getpid()} " in (run.folder / ".writer").read_text()


def test_a_lock_is_not_taken_twice_in_one_process(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with run.lock(), pytest.raises(RunError, match=f"in use by process {os.getpid()}"), run.lock():
        pytest.fail("two writers")
    with run.lock():
        assert (run.folder / ".lock").is_file()


def test_a_writer_removes_what_a_killed_one_left_in_every_folder(tmp_path: Path) -> None:
    run, left = Run(tmp_path / "apple"), ".a.png.x.partial"
    for folder in ("", "images/original", "images/erased", "attacks/word/apple"):
        (run.folder / folder).mkdir(parents=True, exist_ok=True)
        (run.folder / folder / left).touch()
    (run.folder / ".report.html.x.partial").touch()  # perhaps of a process that is writing it now
    with run.lock():
        assert [path.name for path in run.folder.rglob("*.partial")] == [".report.html.x.partial"]
    assert not (run.folder / ".writer").exists()


def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise NotImplementedError  # as releases of filelock do that have no other lock to fall back on

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with pytest.raises(RunError, match="choose a run folder on another"), Run(tmp_path).lock():
        pass


def test_a_process_that_does_not_write_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erase_sd.run.folder.writes", lambda: False)
    run = Run(tmp_path / "apple")
    with run.lock(), run.stage("unlearn", {}, **BEGINS) as entry:
        entry["encoders"] = {}
        run.update(models={"preset": "mini"})
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("run", "concepts", "folder"),
    [
        ("mine", (), "runs/mine"),
        ("mine", ("apple",), "runs/mine"),
        ("some/where", (), "some/where"),
        ("/some/where", (), "/some/where"),
        (Path("some/where"), (), "some/where"),
        (None, ("apple",), "runs/apple"),
        (None, ("Golden Retriever", "dog"), "runs/golden-retriever+dog"),
        (None, ("../../etc",), "runs/etc"),
    ],
)
def test_a_name_lies_in_runs_and_a_path_is_itself(
    run: str | Path | None, concepts: tuple[str, ...], folder: str
) -> None:
    assert run_folder(run, concepts) == Path(folder)


def test_a_dot_is_the_folder_that_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "apple" / "images"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for dots, folder in ((".", inside), ("./", inside), ("..", inside.parent), ("../..", tmp_path)):
        assert run_folder(dots) == folder, dots
    assert Run(run_folder("..")).name == "apple"


@pytest.mark.parametrize("run", ["", "  "])
def test_an_empty_name_is_refused(run: str) -> None:
    with pytest.raises(SettingError, match="run: needs a name"):
        run_folder(run)


def test_a_folder_without_run_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder \(no run\.json\)") as error:
        _ = Run(tmp_path).record
    assert str(tmp_path) in str(error.value)
    assert Run(tmp_path).status("unlearn") == "missing"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"stages": []}', "\0", '{"stages": {"unlearn": "done"}}']
)
def test_a_damaged_run_json_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RunError) as error:
        Run(tmp_path).status("unlearn")
    assert str(error.value).startswith(f"{path}: damaged")
    with pytest.raises(RunError), Run(tmp_path).stage("unlearn", {}, **BEGINS):
        pytest.fail("the stage began")
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["file/run", "file", "nul\0"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    run = Run(tmp_path / name)
    with (
        pytest.raises(RunError, match="cannot be written") as error,
        run.stage("unlearn", {}, **BEGINS),
    ):
        pytest.fail("the stage began")
    assert str(run.folder) in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"
