"""The command line: one line on stderr and exit status 1, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erase_sd.cli import main
from erase_sd.models.presets import Models


def call(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`erase-sd WORDS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "erase_sd", *words],
        capture_output=True, text=True, env=os.environ | env, check=False,
    )  # fmt: skip


def places(models: Models, *names: str) -> list[str]:
    """`--model ... --clip ...` of the tiny world."""
    own = {"model": models.model, "clip": models.clips[0], "data": models.data}
    own["detector"] = models.detector
    return [word for name in names for word in (f"--{name}", str(own[name]))]


def unlearn_words(models: Models, *more: str) -> list[str]:
    return [
        "unlearn",
        "--concept",
        "apple",
        "--steps",
        "2",
        *places(models, "model", "clip", "data"),
        *more,
    ]


def fails(answer: subprocess.CompletedProcess[str], message: str) -> None:
    assert answer.returncode == 1, answer.stderr
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("erase-sd: ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom erase_sd.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'unlearn' in result.output, result.output\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'ultralytics', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_usage_errors_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ((), ("nonsense",), ("unlearn",), ("score", "--run")):
        monkeypatch.setattr(sys, "argv", ["erase-sd", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2


def test_the_three_commands_in_order_end_in_a_table_and_in_json(tiny: Models) -> None:
    Path("prompts").mkdir()
    Path("prompts/apple.txt").write_text("an apple and a dog\n")
    Path("prompts/retain.txt").write_text("a couch\n")
    made = call(*unlearn_words(tiny))
    assert (made.returncode, made.stderr) == (0, "")
    drawn = call(
        "generate", "--prompts", "prompts/apple.txt", "--steps", "2", *places(tiny, "model")
    )
    assert (drawn.returncode, drawn.stderr) == (0, "")
    table = call("score", *places(tiny, "detector"))
    assert (table.returncode, table.stderr) == (0, "") and "Detection rates" in table.stdout
    rows = json.loads(call("score", "--json", *places(tiny, "detector")).stdout)["rows"]
    assert [(row["group"], row["arm"]) for row in rows] == [
        (group, arm)
        for group in ("target", "retained_same", "retained_other")
        for arm in ("original", "erased")
    ]
    needed = {"run", "concept", "group", "arm", "rate", "n", "low", "high"}
    assert all(needed <= row.keys() and row["run"] == "apple" for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unlearn", "--concept", "zeppelin"], "--concept zeppelin: in no caption of the data"),
        (["unlearn", "--concept", " "], "concept: needs a word"),
        (["unlearn", "--concept", "apple", "--method", "magic"], "--method magic: unknown"),
        (["unlearn", "--concept", "apple", "--weight", "x"], "--weight x: needs name=value"),
        (
            ["unlearn", "--concept", "apple", "--rate", "0"],
            "--rate: needs a number above 0, got 0.0",
        ),
        (["unlearn", "--concept", "apple", "--steps", "0"], "--steps: needs at least 1, got 0"),
        (["unlearn", "--concept", "apple", "--preset", "sd0"], "--preset sd0: unknown"),
        (
            ["unlearn", "--concept", "apple", "--data", "nowhere"],
            "--data nowhere: no such folder",
        ),
        (["unlearn", "--concept", "apple", "--clip", "nowhere"], "nowhere: no such folder"),
        (["generate"], "--prompts: needs a file"),
        (["generate", "--prompts", "apple.txt"], "runs/apple: unlearn is missing; unlearn first"),
        (["generate", "--prompts", "apple.txt", "--guidance", "0"], "--guidance: needs 1 to 100"),
        (
            ["generate", "--prompts", "apple.txt", "--images-per-prompt", "0"],
            "--images-per-prompt: needs",
        ),
        (["run", "--concept", "apple"], "--prompts prompts/apple.txt: no such file"),
        (["score"], "no run with images in runs/"),
        (["score", "--run", "apple"], "runs/apple: generate is missing; generate first"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tiny: Models,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has everything imported: there are many of these."""
    if words[0] == "unlearn" and "--data" not in words:
        words = [*words, *places(tiny, "data")]
    monkeypatch.setattr(sys, "argv", ["erase-sd", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    line = capsys.readouterr().err
    assert caught.value.code == 1
    assert line.startswith("erase-sd: ") and message in line and line.count("\n") == 1
    assert not Path("runs").exists()


def test_a_concept_in_every_caption_leaves_nothing_to_retain(tiny: Models) -> None:
    Path("data").mkdir()
    Path("data/results_20130124.token").write_text(
        "".join(f"{i}.jpg#0\tan apple\n" for i in range(9))
    )
    words = ["unlearn", "--concept", "apple", "--data", "data", *places(tiny, "model", "clip")]
    fails(call(*words), "concept apple: every image mentions it")


def test_a_folder_that_cannot_be_written_is_named(tiny: Models) -> None:
    Path("file").write_text("")
    fails(call(*unlearn_words(tiny, "--run", "file/apple")), "file/apple: cannot be written")


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(tiny: Models) -> None:
    """A limit on the size of files stands for the full disk: the erased weights do not fit."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "sys.argv = ['erase-sd', *sys.argv[1:]]\n"
        "from erase_sd.cli import main; main()\n"
    )
    words = unlearn_words(tiny)
    answer = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr.startswith("erase-sd: ") and answer.stderr.count("\n") == 1
    assert "too large" in answer.stderr
    left = {path.name for path in Path("runs/apple").iterdir()}
    assert left <= {"run.json", "train.jsonl", ".lock"}


def test_of_two_processes_on_one_run_folder_the_second_stops(tiny: Models) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "from pathlib import Path; from erase_sd.run import Run; import time\n"
         "with Run(Path('runs/apple')).lock(): print('held', flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        fails(call(*unlearn_words(tiny)), f"runs/apple: in use by process {holder.pid}")
    finally:
        holder.kill()
        holder.communicate()
    assert call(*unlearn_words(tiny)).returncode == 0


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_unlearning_goes_on_to_the_same_weights(
    tiny: Models, signal_number: signal.Signals
) -> None:
    steps = [
        "unlearn",
        "--concept",
        "apple",
        "--steps",
        "160",
        *places(tiny, "model", "clip", "data"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "erase_sd", *steps],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = Path("runs/apple/checkpoint.safetensors")
    while child.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    child.send_signal(signal_number)
    assert child.wait() != 0
    assert checkpoint.exists() and not Path("runs/apple/erased").exists()
    assert call(*steps).returncode == 0
    assert call(*steps, "--run", "whole").returncode == 0
    weights = [
        Path("runs", run, "erased/model.safetensors").read_bytes() for run in ("apple", "whole")
    ]
    assert weights[0] == weights[1]
