"""Commands as a user types them: odd streams and folders, several processes of which one is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import Faults
from report_run import scored_run

from erase_sd.models.presets import Models
from erase_sd.run import Run

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
PROGRAM = [sys.executable, "-m", "erase_sd"]
NO_FLOCK = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)

class Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.POINTER(Step))]

# Loads the number of the system call; flock (73 on x86-64) fails with ENOSYS, all others are allowed.
steps = (Step * 4)(
    Step(0x20, 0, 0, 0), Step(0x15, 0, 1, 73), Step(0x06, 0, 0, 0x00050000 | 38), Step(0x06, 0, 0, 0x7FFF0000)
)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, steps))) == 0
sys.argv = ["erase-sd", *sys.argv[1:]]
from erase_sd.cli import main
main()
"""
"""The program where the system has no flock, as on some network file systems: a real ENOSYS, by seccomp."""


def sources(tiny: Models) -> list[str]:
    return ["--model", str(tiny.model), "--clip", str(tiny.clips[0]), "--data", str(tiny.data)]


def call(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "check": False, "timeout": 300} | options
    return subprocess.run([*PROGRAM, *words], **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def finished(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A scored run whose record names the tiny models."""
    run = scored_run(tiny, tmp_path_factory.mktemp("commands"))
    own = {"model": tiny.model, "data": tiny.data, "detector": tiny.detector}
    sources = {name: str(value) for name, value in own.items()}
    run.update(models={"preset": "mini", "clip": [str(tiny.clips[0])]} | sources)
    return run


def shell(command: str) -> subprocess.CompletedProcess[str]:
    program = " ".join(PROGRAM)
    return subprocess.run(
        ["bash", "-c", command.replace("erase-sd", program)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "status", "line"),
    [
        ("erase-sd methods >&-", 0, ""),
        ("erase-sd score --run none 2>&-", 1, ""),
        ("erase-sd methods > /dev/full", 1, "No space left on device"),
        ("erase-sd generate --prompts - --run apple <&-", 1, "holds no prompt"),
        ("mkdir x; cd x; rmdir ../x; erase-sd data --concept apple", 1, "no longer exists"),
        ("erase-sd show --run apple --out /dev/null", 1, "not a regular file"),
        ("erase-sd show --run apple --out /dev/full", 1, "not a regular file"),
        ("erase-sd export --run apple --to comfyui --out runs/apple/erased", 1, "erased weights"),
        ("erase-sd export --run apple --to comfyui --out /dev/null", 1, "not an export"),
        ("erase-sd export --run apple --to lora --rank 1000000000", 1, "needs a whole number"),
        ("erase-sd attack --run apple --steps 5000", 1, "--steps"),
        ("erase-sd attack --run apple --set sweep.pairs=10000000000", 1, "--set pairs"),
        ("erase-sd run --concept apple --prompts apple.txt --images-per-prompt 0", 1, "--images-per-prompt"),
        ("erase-sd run --concept apple --prompts dog.synonym.txt", 1, "prompts of dog"),
        ("erase-sd run --concept apple --prompts long.txt", 1, "tokens"),
        ("erase-sd data --concept $'\\xff'", 1, "needs a word"),
        ("erase-sd unlearn --concept $(printf 'a%.0s' {1..301})", 1, "at most 300 characters"),
        ("ERASE_SD_CACHE=apple.txt erase-sd data --concept apple", 1,
         "cannot be written (File exists); set ERASE_SD_CACHE to another folder"),
        ("TMPDIR=/nowhere erase-sd methods", 0, ""),
    ],
)  # fmt: skip
def test_commands_end_in_one_line(
    finished: Run, command: str, status: int, line: str, faults: Faults
) -> None:
    shutil.copytree(finished.folder, "runs/apple")
    for name, text in (("apple", "an apple"), ("dog.synonym", "a hound"), ("long", "apple " * 99)):
        Path(f"{name}.txt").write_text(f"{text}\n")
    with faults("commands", command):
        answer = shell(command)
        assert answer.returncode == status, answer.stderr
        assert line in answer.stderr and "Traceback" not in answer.stderr, answer.stderr
        assert len(answer.stderr.splitlines()) <= 1
        assert Path("/dev/null").is_char_device() and Path("/dev/full").is_char_device()


def test_score_and_report_of_all_runs_exit_1_if_one_is_damaged(
    finished: Run, faults: Faults
) -> None:
    for name in ("apple", "damaged"):
        shutil.copytree(finished.folder, f"runs/{name}")
    Path("runs/damaged/run.json").write_text("[]")
    for command in ("score", "score --json", "report"):
        with faults("damaged runs", f"{command} over all runs"):
            answer = call(*command.split())
            assert answer.returncode == 1 and "runs/damaged/run.json" in answer.stderr
            assert len(answer.stderr.splitlines()) == 1
            if command.endswith("json"):
                assert len(json.loads(answer.stdout)["unscored"]) == 1
            else:
                assert "apple" in answer.stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="filters a system call of x86-64")
@pytest.mark.parametrize("command", ["unlearn", "data"])
def test_a_file_system_without_locks_works_or_is_one_line(
    tiny: Models, command: str, faults: Faults
) -> None:
    words = [command, "--concept", "apple"]
    more = [*sources(tiny), "--steps", "1", "--max-residual", "2"]
    words += more if command == "unlearn" else []
    with faults("environments", f"{command}: flock is not supported"):
        answer = subprocess.run(
            [sys.executable, "-c", NO_FLOCK, *words], capture_output=True, text=True, check=False
        )
        assert "Traceback" not in answer.stderr, answer.stderr
        assert answer.returncode == 0 or "locks" in answer.stderr, answer.stderr


def test_a_working_directory_whose_name_is_not_utf_8(tiny: Models, faults: Faults) -> None:
    Path(os.fsdecode(b"caf\xe9")).mkdir()
    with faults("environments", "a working directory that is not UTF-8"):
        answer = call(
            "unlearn", "--concept", "apple", "--steps", "1", "--max-residual", "2",
            *sources(tiny), cwd=b"caf\xe9",
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr


def test_prompts_from_standard_input_reach_every_process(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    shutil.copytree(finished.folder, "runs/apple")
    text = "an apple\na dog\nan apple on a table\n"
    words = ("--run", "apple", "--steps", "1", "--batch", "1", "--quiet")
    with faults("concurrency", "launch: prompts from standard input"):
        answer = call("launch", "-n", "2", "generate", "--prompts", "-", *words, input=text)
        assert answer.returncode == 0, answer.stderr
        run = Run(Path("runs/apple"))
        assert [i.prompt for i in run.images() if i.variant == "erased"] == text.splitlines()
        several = {p.name: p.read_bytes() for p in Path("runs/apple/images/erased").iterdir()}
    with faults("concurrency", "one process gives the same images"):
        shutil.rmtree("runs/apple/images")
        assert call("generate", "--prompts", "-", *words, input=text).returncode == 0
        assert several == {
            p.name: p.read_bytes() for p in Path("runs/apple/images/erased").iterdir()
        }
    with faults("concurrency", "launch: no prompts on standard input"):
        answer = call("launch", "-n", "2", "generate", "--prompts", "-", *words, input="")
        assert answer.returncode == 1 and "holds no prompt" in answer.stderr


def test_a_world_size_without_a_launcher_does_not_make_generate_wait(
    finished: Run, faults: Faults
) -> None:
    shutil.copytree(finished.folder, "runs/apple")
    Path("apple.txt").write_text("an apple\na dog\n")
    for rank in ("0", "1"):
        with faults("environments", f"generate: WORLD_SIZE left over, RANK={rank}"):
            answer = call(
                "generate", "--prompts", "apple.txt", "--run", "apple", "--steps", "1",
                env=os.environ | {"WORLD_SIZE": "4", "RANK": rank},
            )  # fmt: skip
            assert answer.returncode == 0, answer.stderr
            assert len(Run(Path("runs/apple")).images()) == 4


def grid(tiny: Models, out: str, count: int) -> list[str]:
    """Four runs, shared among processes; without a detector, which would be the slowest part."""
    return [
        "launch", "-n", str(count), "compare", "--concepts", "apple", "--methods",
        "ga:steps=300,learning_rate=1e-6", "--seeds", "4", "--skip-images", "--out", out, *sources(tiny),
    ]  # fmt: skip


def encoders(out: str) -> dict[str, bytes]:
    files = Path(out).rglob("erased/model.safetensors")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_comparison_one_of_whose_four_processes_is_killed_ends_the_same(
    tiny: Models, number: signal.Signals, faults: Faults
) -> None:
    Path("prompts").mkdir()
    for name in ("apple", "retain"):
        Path(f"prompts/{name}.txt").write_text("an apple\n")
    with faults("concurrency", f"four processes of a comparison, one killed by {number.name}"):
        child = subprocess.Popen(
            [*PROGRAM, *grid(tiny, "killed", 4)], stderr=subprocess.PIPE, text=True
        )
        while child.poll() is None and not list(Path("killed").rglob("train.jsonl")):
            time.sleep(0.05)
        own = [pid for pid, parent in _processes() if parent == child.pid]
        assert len(own) == 4
        os.kill(own[-1], number)
        _, stderr = child.communicate(timeout=300)
        assert child.returncode != 0 and "the same command resumes" in stderr, stderr
        deadline = time.monotonic() + 60
        while [p for p, parent in _processes() if p in own] and time.monotonic() < deadline:
            time.sleep(0.1)
    with faults("concurrency", f"the comparison resumes after {number.name}"):
        answer = call(*grid(tiny, "killed", 2))
        assert answer.returncode == 0, answer.stderr
        assert call(*grid(tiny, "whole", 2)).returncode == 0
        assert len(encoders("whole")) == 4 and encoders("killed") == encoders("whole")


def _processes() -> list[tuple[int, int]]:
    """Ids of all processes and of their parents."""
    pairs = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                state = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pairs.append((int(place.name), int(state[1])))
    return pairs
