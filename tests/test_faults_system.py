"""The machine itself fails: full and read-only disks, no memory, signals, odd users and environments."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import Faults

from erase_sd.models.presets import Models

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system; needs root"
)
PREAMBLE = (
    "import resource, sys; sys.argv = ['erase-sd', *sys.argv[1:]]\n{limit}\n"
    "from erase_sd.cli import main; main()"
)


def words(tiny: Models, *more: str) -> list[str]:
    """`erase-sd unlearn` on tiny models, 40 steps."""
    return [
        "unlearn", "--concept", "apple", "--steps", "40", "--model", str(tiny.model), "--clip",
        str(tiny.clips[0]), "--data", str(tiny.data), *more,
    ]  # fmt: skip


def call(
    *arguments: str, limit: str = "", stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with a resource limit or changed environment."""
    own = {
        name: value for name, value in {**os.environ, **environment}.items() if value != "(none)"
    }
    return subprocess.run(
        [sys.executable, "-P", "-c", PREAMBLE.format(limit=limit), *arguments],
        capture_output=True, text=True, check=False, env=own, input=stdin, timeout=300,
    )  # fmt: skip


def assert_one_line(answer: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr.startswith("erase-sd: ") and "Traceback" not in answer.stderr, (
        answer.stderr
    )
    for part in parts:
        assert part in answer.stderr, answer.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@needs_root
def test_full_and_read_only_disks(tiny: Models, small_disk: Path, faults: Faults) -> None:
    run = ("--run", str(small_disk / "apple"))
    (small_disk / "ballast").write_bytes(b"\0" * 7_900_000)
    with faults("full disks", "unlearn: the run"):
        assert_one_line(call(*words(tiny, *run)), str(small_disk))
    with faults("full disks", "unlearn: nothing half-written is left"):
        assert not list(small_disk.rglob("*.partial"))
    (small_disk / "ballast").unlink()
    with faults("full disks", "unlearn: with room again"):
        assert call(*words(tiny, *run)).returncode == 0
    (small_disk / "more").write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * 4096 - 4096))
    with faults("full disks", "unlearn: the cache"):
        answer = call(*words(tiny), ERASE_SD_CACHE=str(small_disk / "cache"))
        assert answer.returncode == 0 and "not cached" in answer.stderr, answer.stderr
    (small_disk / "more").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with faults("read-only disks", "unlearn: the run"):
        answer = call(*words(tiny, "--run", str(small_disk / "new")))
        assert_one_line(answer, str(small_disk), "cannot be written")
    with faults("read-only disks", "export"):
        answer = call("export", *run, "--to", "comfyui", "--out", "exported")
        assert answer.returncode == 0 and list(Path("exported").glob("*.safetensors")), (
            answer.stderr
        )
        answer = call("export", *run, "--to", "comfyui")
        assert_one_line(answer, str(small_disk), "Read-only file system")
    with faults("read-only disks", "unlearn: the cache"):
        answer = call(*words(tiny, "--run", "other"), ERASE_SD_CACHE=str(small_disk / "cache"))
        assert answer.returncode == 0 and "not cached" in answer.stderr, answer.stderr
    with faults("read-only disks", "the miniature dataset"):
        answer = call("data", "--concept", "apple", ERASE_SD_CACHE=str(small_disk / "cache"))
        assert_one_line(answer, str(small_disk))


@pytest.mark.parametrize("size", [1_000, 60_000])
def test_limits_on_file_sizes(tiny: Models, size: int, faults: Faults) -> None:
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    with faults("limits", f"files of {size} bytes"):
        assert_one_line(call(*words(tiny), limit=limit), "apple")
        assert not list(Path("runs").rglob("*.partial"))


LIMITED = """
import sys
from pathlib import Path

from erase_sd.cli import app, main
from erase_sd.unlearning.stage import unlearn  # all libraries, before the limit
import transformers.models.clip.modeling_clip, diffusers
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ({megabytes} << 20),) * 2)
"""
"""Leaves the process so many megabytes beside what its libraries have mapped."""


def test_limits_on_memory(tiny: Models, faults: Faults) -> None:
    """With enough it ends well, with less in smaller batches, with too little in one line and no run.

    With next to nothing, Rust (in `tokenizers`) or glibc may end the process before Python can say why.
    """
    batch = ("--forget-batch", "3000", "--retain-batch", "100")
    for megabytes, statuses in ((6000, (0,)), (700, (0, 1)), (150, (1,)), (40, (1, -6, 127))):
        with faults("limits", f"{megabytes} MB of memory"):
            run = ("--run", f"runs/{megabytes}")
            answer = call(*words(tiny, *batch, *run), limit=LIMITED.format(megabytes=megabytes))
            assert "Traceback" not in answer.stderr, answer.stderr
            assert answer.returncode in statuses, answer.stderr
            assert not list(Path().rglob("runs/*/.*.partial"))
            if answer.returncode:
                assert not Path(f"runs/{megabytes}/erased").exists()
            if answer.returncode == 1:  # PyTorch may warn before it that a kernel had no memory
                assert answer.stderr.splitlines()[-1].startswith("erase-sd: "), answer.stderr


def test_sigterm_says_how_to_resume_and_exits_143(tiny: Models, faults: Faults) -> None:
    arguments = words(tiny, "--steps", "4000")
    child = subprocess.Popen(
        [sys.executable, "-m", "erase_sd", *arguments], stderr=subprocess.PIPE, text=True
    )
    checkpoint = Path("runs/apple/checkpoint.safetensors")
    while child.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    with faults("signals", "SIGTERM: exit status and line"):
        assert child.returncode == 143
        assert "checkpoint.safetensors: step" in stderr and "Traceback" not in stderr
        assert stderr.splitlines()[-1] == "erase-sd: terminated; the same command resumes"
    with faults("signals", "SIGTERM: the checkpoint stays"):
        assert checkpoint.exists() and not list(Path("runs/apple").glob("*.partial"))


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "(none)", "ERASE_SD_CACHE": "(none)", "XDG_CACHE_HOME": "(none)"},
        {"HOME": "/nowhere", "ERASE_SD_CACHE": "cache"},
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"WORLD_SIZE": "4"},
        {"TERM": "dumb", "COLUMNS": "10"},
        {"TMPDIR": "/nowhere"},
    ],
)
def test_odd_environments(tiny: Models, environment: dict[str, str], faults: Faults) -> None:
    with faults("environments", f"unlearn: {environment}"):
        answer = call(*words(tiny), **environment)
        assert answer.returncode == 0, answer.stderr
    with faults("environments", f"data: {environment}"):
        answer = call(
            "data",
            str(tiny.data),
            "--concept",
            "apple",
            "--clip",
            str(tiny.clips[0]),
            **environment,
        )
        assert answer.returncode == 0, answer.stderr
    with faults("environments", f"no ~ is made: {environment}"):
        assert not Path("~").exists()


def test_a_world_size_that_a_launcher_left_does_not_make_a_comparison_wait(
    tiny: Models, faults: Faults
) -> None:
    Path("prompts").mkdir()
    for name in ("apple", "retain"):
        Path(f"prompts/{name}.txt").write_text("an apple\n")
    arguments = [
        "compare", "--concepts", "apple", "--methods", "ga:steps=2", "--seeds", "1", "--skip-images",
        *words(tiny)[5:],
    ]  # fmt: skip
    with faults("environments", "compare: WORLD_SIZE without a launcher"):
        answer = call(*arguments, WORLD_SIZE="4", RANK="1", LOCAL_RANK="1")
        assert answer.returncode == 0, answer.stderr


@needs_root
def test_a_user_id_that_the_system_does_not_know(tiny: Models, faults: Faults) -> None:
    if not Path("/usr/bin/setpriv").exists():
        pytest.skip("needs setpriv")
    with faults("environments", "a user without a name"):
        code = (
            "import os; from erase_sd.files import cache_folder; os.environ.pop('HOME', None); "
            "os.environ.pop('ERASE_SD_CACHE'); os.environ.pop('XDG_CACHE_HOME', None); "
            "os.setgid(54321); os.setuid(54321); print(cache_folder())"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0 and Path(answer.stdout.strip()).is_absolute(), answer.stderr


def test_files_of_the_working_directory_are_not_imported_by_the_detector(
    tiny: Models, faults: Faults, tmp_path: Path
) -> None:
    from PIL import Image

    from erase_sd.detection.detector import detect

    Image.new("RGB", (64, 64)).save("image.png")
    for name in ("colorsys", "json", "torch", "ultralytics", "numpy"):
        Path(f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n"
        )
    assert tiny.detector is not None
    with faults("malicious files", "modules in the working directory"):
        detect(tiny.detector, [Path("image.png")])
        assert not (tmp_path / "ran").exists()


def test_a_detector_that_is_killed_is_one_line(tiny: Models, faults: Faults) -> None:
    from PIL import Image

    from erase_sd import json_process
    from erase_sd.detection import detector
    from erase_sd.errors import ModelError

    Image.new("RGB", (64, 64)).save("image.png")
    assert tiny.detector is not None
    for number in (signal.SIGKILL, signal.SIGSEGV):
        with (
            faults("signals", f"{number.name} to the detector"),
            pytest.MonkeyPatch.context() as patch,
        ):
            detector._kept.end()
            code = f"import os; os.kill(os.getpid(), {int(number)})"
            patch.setattr(
                json_process, "isolated", lambda *_, code=code: [sys.executable, "-c", code]
            )
            with pytest.raises(ModelError, match="the detector's process failed"):
                detector.detect(tiny.detector, [Path("image.png")])


def test_prompts_from_standard_input_are_read_once(tiny: Models, faults: Faults) -> None:
    assert call(*words(tiny)).returncode == 0
    for name in ("-", "/dev/stdin"):
        with faults("silent wrong results", f"prompts from {name}"):
            answer = call(
                "generate", "--prompts", name, "--run", "apple", "--steps", "2", stdin="an apple\n"
            )
            assert answer.returncode == 0, answer.stderr
            text = Path("runs/apple/run.json").read_text()
            from erase_sd.files import digest

            assert digest(b"an apple\n") in text and digest(b"") not in text
    for what, data in (("nothing", ""), ("NUL", "an\0apple\n"), ("too long", "apple " * 99)):
        with faults("prompts", f"standard input: {what}"):
            answer = call(
                "generate", "--prompts", "-", "--run", "apple", "--steps", "2", stdin=data
            )
            assert_one_line(answer)
    os.mkfifo("pipe.txt")
    with faults("not regular files", "generate: a pipe that nobody writes to"):
        answer = call("generate", "--prompts", "pipe.txt", "--run", "apple")
        assert_one_line(answer, "not a regular file")


@pytest.mark.parametrize("command", [["methods"], ["--help"], ["data", "--concept", "apple"]])
def test_a_closed_pipe_ends_quietly(tiny: Models, command: list[str], faults: Faults) -> None:
    more = [str(tiny.data), "--clip", str(tiny.clips[0])] if command[0] == "data" else []
    with faults("closed pipes", " ".join(command)):
        child = subprocess.Popen(
            [sys.executable, "-m", "erase_sd", *command, *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        stderr = child.stderr.read().decode()
        child.wait(timeout=120)
        child.stderr.close()
        assert "Traceback" not in stderr and "Exception ignored" not in stderr, stderr


def test_processes_that_share_a_run_a_cache_and_a_dataset(tiny: Models, faults: Faults) -> None:
    own = [sys.executable, "-c", "from erase_sd.mini.dataset import dataset; print(dataset(40))"]
    children = [
        subprocess.Popen(own, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    outputs = [child.communicate(timeout=300) for child in children]
    with faults("concurrency", "four processes make one dataset"):
        assert [c.returncode for c in children] == [0] * 4, outputs
        assert len({out for out, _ in outputs}) == 1
        assert not list(Path("cache").glob(".*.partial"))
    arguments = [sys.executable, "-m", "erase_sd", *words(tiny)]
    two = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    lines = [child.communicate(timeout=300)[1].decode() for child in two]
    with faults("concurrency", "two processes on one run"):
        assert sorted(c.returncode for c in two) in ([0, 0], [0, 1])
        assert all("Traceback" not in line for line in lines)
    named = [[*arguments, "--run", name] for name in ("a", "b")]
    both = [subprocess.Popen(a, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for a in named]
    lines = [child.communicate(timeout=300)[1].decode() for child in both]
    with faults("concurrency", "two runs on one cache of features"):
        assert [c.returncode for c in both] == [0, 0], lines
        weights = [Path(f"runs/{name}/erased/model.safetensors").read_bytes() for name in "ab"]
        assert weights[0] == weights[1]


def test_a_socket_and_a_device_are_not_prompts(faults: Faults) -> None:
    from erase_sd.data.prompts import read_prompt_file
    from erase_sd.errors import DataError

    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        for name in ("socket.txt", "/dev/zero", "/dev/random", "/dev/tty", "."):
            with faults("not regular files", f"prompts: {name}"), pytest.raises(DataError):
                read_prompt_file(Path(name))
