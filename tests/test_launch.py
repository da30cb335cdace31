"""Several processes generate the same files as one; a process that fails ends all with one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from erase_sd.cli import app
from erase_sd.cli.launch import run_processes
from erase_sd.errors import ModelError, RunError
from erase_sd.generation import batch, share
from erase_sd.generation.cache import store_batch
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.share import FOLDER, Share
from erase_sd.generation.stage import generate
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.runtime import device  # itself, on the pretend card too

QUICK = GenerateSettings(steps=2, batch=2)
PROMPTS = [Path("apple.txt")]


@pytest.fixture(autouse=True)
def prompts(isolated_folders: None) -> None:
    PROMPTS[0].write_text("".join(f"an apple number {i}\n" for i in range(5)))


def files_of(run: Run) -> dict[str, bytes]:
    files = [run.folder / "images.jsonl", *(run.folder / "images").rglob("*.png")]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in files}


def as_process(number: int, count: int, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MASTER_ADDR", "127.0.0.1")
    patch.setenv("RANK", str(number))
    patch.setenv("WORLD_SIZE", str(count))


def test_another_process_shows_that_it_is_there_and_takes_no_smaller_batches_than_the_others(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, absent = Share(erased_run.folder / FOLDER, 0, 2), list[bool]()

    def exhausted(*_: object) -> None:
        absent.append(first._is_absent(1))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(batch, "generate_batch", exhausted)
    as_process(1, 2, monkeypatch)
    with pytest.raises(ModelError, match="batch: out of memory; needs smaller batches"):
        generate(PROMPTS, QUICK, tiny, erased_run)
    assert absent == [False] and first._is_absent(1)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_leave_the_same_files_as_one(
    count: int, tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(PROMPTS, QUICK, tiny, erased_run)
    alone = files_of(erased_run)
    shutil.rmtree(erased_run.folder / "images")
    (erased_run.folder / "images.jsonl").unlink()
    monkeypatch.setenv("ERASE_SD_CACHE", "another-cache")  # so that nothing is reused
    for number in range(1, count):
        as_process(number, count, monkeypatch)
        assert generate(PROMPTS, QUICK, tiny, erased_run) == []
    assert not (erased_run.folder / "images").exists()  # the first process alone writes the run
    as_process(0, count, monkeypatch)
    generate(PROMPTS, QUICK, tiny, erased_run)
    assert files_of(erased_run) == alone
    assert not (erased_run.folder / ".batches").exists()


def test_an_interrupted_pass_resumes_with_another_number_of_processes(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(1, 2, monkeypatch)
    generate(PROMPTS, QUICK, tiny, erased_run)  # and the first process never started
    as_process(0, 1, monkeypatch)
    records = generate(PROMPTS, QUICK, tiny, erased_run)
    assert len(records) == 10
    assert not (erased_run.folder / ".batches").exists()


def test_a_process_that_begins_late_generates_nothing_that_an_earlier_pass_left(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(PROMPTS, QUICK, tiny, erased_run)
    expected = files_of(erased_run)
    monkeypatch.setattr(batch, "generate_batch", lambda *_: pytest.fail("generated again"))

    def begins_late(done: int, *_: object) -> None:
        as_process(1, 2, monkeypatch)
        generate(PROMPTS, QUICK, tiny, erased_run)
        assert len(erased_run.images()) == 10
        if done == 4:
            raise KeyboardInterrupt

    as_process(0, 2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        generate(PROMPTS, QUICK, tiny, erased_run, begins_late)
    as_process(0, 1, monkeypatch)
    generate(PROMPTS, QUICK, tiny, erased_run)
    assert files_of(erased_run) == expected


def test_a_process_that_is_there_is_waited_for_however_slow_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (Share(tmp_path / "run" / FOLDER, number, 3) for number in range(3))
    is_absent, asked = Share._is_absent, list[bool]()

    def watched(own: Share, number: int) -> bool:
        asked.append(is_absent(own, number))
        if len(asked) == 3:
            store_batch(own.folder, "key", [b"png"])
        return asked[-1]

    monkeypatch.setattr(Share, "_is_absent", watched)
    waits, stopped = iter((False, True)), threading.Event()
    monkeypatch.setattr(stopped, "wait", lambda _: next(waits))
    with pytest.raises(CancelledError):  # a process that has not begun yet is not taken for absent
        first._from_other(1, "other", 1, stopped)
    assert not asked
    monkeypatch.setattr(share, "ABSENT_SECONDS", 0.0)
    with third.present():
        assert first._from_other(2, "key", 1, threading.Event()) == [b"png"]
        assert asked == [False] * 3
        with pytest.raises(RunError, match="process 2 of 3 is not there"):
            first._from_other(1, "other", 1, threading.Event())
    with second.present(), pytest.raises(RunError, match="process 3 of 3 is not there"):
        first._from_other(2, "other", 1, threading.Event())
    first.clear()
    assert list((tmp_path / "run").iterdir()) == []


def test_each_process_knows_its_number_and_has_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = (
        "import os, pathlib, sys\n"
        "number, threads = (os.environ[n] for n in ('RANK', 'OMP_NUM_THREADS'))\n"
        f"pathlib.Path({str(tmp_path)!r}, number).write_text(os.environ['WORLD_SIZE'] + threads)\n"
    )
    assert run_processes([sys.executable, "-c", code], 3) == 0
    assert [(tmp_path / str(number)).read_text() for number in range(3)] == ["31"] * 3


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device() == torch.device("cuda")
    devices = []
    for number in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        devices.append(device())
    assert devices == [torch.device("cuda", number) for number in (0, 1, 0)]


def test_a_process_that_fails_ends_all_with_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('no memory')\ntime.sleep(60)"
    )
    assert run_processes([sys.executable, "-c", code], 3) == 1
    assert capfd.readouterr().err.splitlines() == [
        "no memory",
        "erase-sd: process 2 of 3 ended with status 1; all were stopped; the same command resumes, "
        "with any number of processes",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the launcher's children in /proc")
def test_a_killed_process_ends_all_with_one_line_and_unlearning_resumes_alone(tiny: Models) -> None:
    words = [
        "unlearn", "--concept", "apple", "--steps", "300", "--retain-floor", "0", "--dtype", "fp32",
        "--max-residual", "1e9", "--no-mentions", "--model", str(tiny.model), "--clip", str(tiny.clips[0]),
        "--data", str(tiny.data), "--validate-every", "10",
    ]  # fmt: skip
    program = [sys.executable, "-m", "erase_sd"]
    launched = subprocess.Popen(
        [*program, "launch", "-n", "2", *words], stderr=subprocess.PIPE, text=True
    )
    checkpoint = Path("runs/apple/checkpoint.safetensors")
    while not checkpoint.exists():
        assert launched.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, stderr = launched.communicate(timeout=120)
    assert launched.returncode == 1
    assert [line for line in stderr.splitlines() if not line.startswith("[")] == [
        "erase-sd: process 2 of 2 ended with status -9; all were stopped; the same command resumes, "
        "with any number of processes"
    ]
    subprocess.run([*program, *words], check=True)
    assert Run(Path("runs/apple")).unlearned().encoders["text_encoder"].resumed_at >= 10


def test_a_command_that_shares_nothing_is_refused() -> None:
    answer = CliRunner().invoke(app, ["launch", "-n", "2", "report", "--run", "apple"])
    assert answer.exit_code == 2
    assert "needs one of run, unlearn, generate" in answer.output
