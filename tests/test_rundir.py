"""One writer at a time, and no stage rests on an older one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erase_sd.errors import RunError, SettingError
from erase_sd.run import Run, folder_of

HOLDER = """
import sys
from pathlib import Path
from erase_sd.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def finish(run: Run, *stages: str) -> None:
    for stage in stages:
        with run.stage(stage, {"seed": 0}):
            pass


def states(run: Run) -> dict[str, str]:
    return {stage: run.status(stage) for stage in ("unlearn", "generate", "score")}


def test_a_stage_is_missing_then_running_then_done(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    assert run.status("unlearn") == "missing"
    with run.stage("unlearn", {"seed": 7}) as entry:
        assert run.status("unlearn") == "running"
        assert run.manifest["stages"]["unlearn"]["settings"] == {"seed": 7}
        entry["steps"] = 3
    assert run.status("unlearn") == "done"
    assert run.manifest["stages"]["unlearn"]["steps"] == 3
    assert run.manifest["stages"]["unlearn"]["settings"] == {"seed": 7}
    assert "python" in run.manifest["versions"]


def test_a_stage_that_raises_is_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with pytest.raises(KeyboardInterrupt), run.stage("unlearn", {}):
        raise KeyboardInterrupt
    assert run.status("unlearn") == "running"
    with run.lock():  # and the folder is free again
        pass


def test_a_stage_begun_anew_drops_the_later_ones(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn", "generate", "score")
    assert states(run) == {"unlearn": "done", "generate": "done", "score": "done"}
    with run.stage("generate", {"seed": 1}):
        assert states(run) == {"unlearn": "done", "generate": "running", "score": "missing"}
    assert states(run) == {"unlearn": "done", "generate": "done", "score": "missing"}
    with run.stage("unlearn", {"seed": 0}):
        assert states(run) == {"unlearn": "running", "generate": "missing", "score": "missing"}


def test_an_interrupted_unlearning_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    settings = {"concepts": ["apple"], "rate": 2e-4, "data": None}
    with pytest.raises(KeyboardInterrupt), run.stage("unlearn", settings):
        raise KeyboardInterrupt
    with run.stage("unlearn", settings):
        pass
    assert run.status("unlearn") == "done"


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"rate": 0.2, "seed": 0}, "rate 0.1, now it is 0.2"),
        ({"rate": 0.1}, "seed 0, now it is null"),
        ({"rate": 0.1, "seed": 0, "towers": "both"}, 'towers null, now it is "both"'),
    ],
)
def test_other_settings_are_refused_by_the_field_that_differs(
    tmp_path: Path, now: dict[str, Any], told: str
) -> None:
    run = Run(tmp_path / "apple")
    with run.stage("unlearn", {"rate": 0.1, "seed": 0}):
        pass
    before = run.manifest
    with pytest.raises(RunError) as error, run.stage("unlearn", now):
        pytest.fail("the stage began")
    assert str(run.folder) in str(error.value) and told in str(error.value)
    assert run.manifest == before


def test_later_stages_may_begin_with_other_settings(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn", "generate")
    with run.stage("generate", {"seed": 5}):
        pass
    assert run.manifest["stages"]["generate"]["settings"] == {"seed": 5}


def test_a_required_stage_is_done_or_refused_with_a_hint(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with pytest.raises(RunError, match="unlearn is missing; unlearn first"):
        run.require("unlearn", "unlearn first")
    with run.stage("unlearn", {}), pytest.raises(RunError, match="unlearn is running; wait"):
        run.require("unlearn", "wait")
    assert run.require("unlearn", "unlearn first") == run.manifest


def test_an_update_keeps_what_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    finish(run, "unlearn")
    run.update(note="kept")
    assert run.manifest["note"] == "kept"
    assert run.status("unlearn") == "done"


def test_one_process_writes_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError) as error, run.stage("unlearn", {}):
            pytest.fail("two writers")
        assert str(error.value).startswith(f"{run.folder}: in use by process {holder.pid} on ")
        assert len(str(error.value).splitlines()) == 1
        assert run.status("unlearn") == "missing"
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
        with run.lock():
            assert f"process {os.getpid()} " in (run.folder / ".lock").read_text()


def test_a_lock_is_not_taken_twice_in_one_process(tmp_path: Path) -> None:
    run = Run(tmp_path / "apple")
    with run.lock(), pytest.raises(RunError, match=f"in use by process {os.getpid()}"), run.lock():
        pytest.fail("two writers")
    with run.lock():
        assert (run.folder / ".lock").is_file()


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
    assert folder_of(run, concepts) == Path(folder)


@pytest.mark.parametrize("run", ["", "  "])
def test_an_empty_name_is_refused(run: str) -> None:
    with pytest.raises(SettingError, match="--run: needs a name"):
        folder_of(run)


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run folder \(no run\.json\)") as error:
        _ = Run(tmp_path).manifest
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
    with pytest.raises(RunError), Run(tmp_path).stage("unlearn", {}):
        pytest.fail("the stage began")
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["file/run", "file", "nul\0"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    run = Run(tmp_path / name)
    with pytest.raises(RunError, match="cannot be written") as error, run.stage("unlearn", {}):
        pytest.fail("the stage began")
    assert str(run.folder) in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"
