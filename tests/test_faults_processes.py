"""Real processes that a shim in them kills or stops before a chosen write; what is left is finished."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import CALLS, Faults
from test_faults_commands import PROGRAM, call, encoders, grid
from test_faults_commands import finished as finished
from test_faults_kills import contents

from erase_sd.cli import launch
from erase_sd.models.presets import Models
from erase_sd.run import Run

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
SHIM = f"""
import os, signal

def counting(name, call):
    def counted(*arguments, **options):
        if (log := os.environ.get("SHIM_LOG")) and os.environ["SHIM_FIRST"] == str(os.getpid()):
            with open(log, "a") as file:
                print(name, file=file)
        counting.left -= 1
        if counting.left == 0:
            os.kill(int(os.environ.get("SHIM_PID") or os.getpid()), int(os.environ["SHIM_SIGNAL"]))
        return call(*arguments, **options)
    return counted

counting.left = int(os.environ.get("SHIM_BEFORE", 0))
os.environ.setdefault("SHIM_FIRST", str(os.getpid()))  # the detector's calls are its own
if os.environ.get("SHIM_RANK") == os.environ.get("RANK"):
    for name in {CALLS}:
        setattr(os, name, counting(name, getattr(os, name)))
    if "SHIM_RANK" in os.environ:
        # The process itself; those that it starts, which do the work, kill it at their call.
        os.environ.setdefault("SHIM_PID", str(os.getpid()))
"""
"""`sitecustomize` of the processes: counts calls as `faulty.killed_at` does, and signals before one."""
ATTACK = (
    "attack", "--run", "apple", "--attack", "embeddings", "--set", "counts=1", "--set", "steps=2",
    "--set", "captions=2", "--images", "2", "--steps", "1", "--quiet",
)  # fmt: skip


@pytest.fixture
def shim(tmp_path: Path) -> dict[str, str]:
    """The environment of processes with the shim."""
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(SHIM)
    path = os.pathsep.join([str(tmp_path / "shim"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_an_attack_killed_before_any_write_ends_the_same(
    finished: Run, shim: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    run, log = Path("runs/apple"), tmp_path / "calls"
    for env in (shim, shim | {"SHIM_LOG": str(log)}):  # the first one fills the caches
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished.folder, run)
        assert call(*ATTACK, env=env).returncode == 0
    expected, calls = contents(run), log.read_text().split()
    assert len(calls) > 20 and "attacks.json" in expected

    def again() -> None:
        answer = call(*ATTACK, env=shim)
        assert answer.returncode == 0, answer.stderr
        assert contents(run) == expected
        assert not list(run.rglob("*.partial"))

    last = max(i for i, name in enumerate(calls, 1) if name == "replace")
    for number in (2, len(calls) // 3, 2 * len(calls) // 3, last):
        with faults("kills: attack, real processes", f"before {calls[number - 1]} {number}"):
            shutil.rmtree(run)
            shutil.copytree(finished.folder, run)
            own = {"SHIM_BEFORE": str(number), "SHIM_SIGNAL": str(int(signal.SIGKILL))}
            assert call(*ATTACK, env=shim | own).returncode == -signal.SIGKILL
            again()
    with faults("concurrency", "two processes attack one run, one is killed"):
        shutil.rmtree(run)
        shutil.copytree(finished.folder, run)
        own = {"SHIM_BEFORE": str(len(calls) // 2), "SHIM_SIGNAL": str(int(signal.SIGSTOP))}
        first = subprocess.Popen([*PROGRAM, *ATTACK], env=shim | own, stderr=subprocess.PIPE)
        assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])  # it stands still in the lock
        second = call(*ATTACK, env=shim)
        assert second.returncode == 1, second.stderr
        assert f"in use by process {first.pid}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        first.kill()
        first.communicate()
        again()


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 40])
def test_a_comparison_of_two_processes_one_of_which_is_killed_before_a_write_ends_the_same(
    tiny: Models, shim: dict[str, str], number: int, faults: Faults
) -> None:
    Path("prompts").mkdir()
    for name in ("apple", "retain"):
        Path(f"prompts/{name}.txt").write_text("an apple\n")
    with faults("kills: compare, two processes", f"the second at call {number} of its cell"):
        own = {
            "SHIM_RANK": "1",
            "SHIM_BEFORE": str(number),
            "SHIM_SIGNAL": str(int(signal.SIGKILL)),
        }
        answer = call(*grid(tiny, "killed", 2), env=shim | own)
        assert answer.returncode != 0 and "process 2 of 2 ended" in answer.stderr, answer.stderr
        assert "the same command resumes" in answer.stderr
    with faults("kills: compare, two processes", f"resumed after call {number}"):
        answer = call(*grid(tiny, "killed", 2), env=shim)
        assert answer.returncode == 0, answer.stderr
        assert call(*grid(tiny, "whole", 2), env=shim).returncode == 0
        assert len(encoders("whole")) == 4 and encoders("killed") == encoders("whole")


def test_a_process_that_cannot_be_started_ends_those_before_it(
    monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def limited(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", limited)
    with faults("resource bounds", "launch: no third process"):
        with pytest.raises(OSError, match="temporarily"):
            launch.run_processes([sys.executable, "-c", "import time; time.sleep(600)"], 4)
        deadline = time.monotonic() + 30
        while any(child.poll() is None for child in started) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(child.returncode == -signal.SIGTERM for child in started)


@pytest.mark.parametrize("count", ["0", "-1", "257", "1000000000"])
def test_launch_starts_no_flood_of_processes(count: str, faults: Faults) -> None:
    from typer.testing import CliRunner

    from erase_sd.cli import app

    with faults("resource bounds", f"launch -n {count}"):
        answer = CliRunner().invoke(app, ["launch", "-n", count, "generate"])
        assert answer.exit_code == 2
