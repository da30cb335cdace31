"""Work in a child process: its result and its errors arrive, it can ask, and it ends with its parent."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from erase_sd.child import KilledError
from erase_sd.cli import job
from erase_sd.cli.stage_process import UNUSED, UNUSED_BY_IMAGES
from erase_sd.scoring import ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
WORK = """
import os, signal, sys, time, typer
from erase_sd import errors, runtime
from erase_sd.cli.stage_process import in_stage_process
from erase_sd.termination import handle_signals

def outcome(work, *arguments):
    try:
        return in_stage_process((), None, work, *arguments)
    except BaseException as error:
        return type(error).__name__, str(error), getattr(error, "field", None)

def fail(error):
    raise error

def end(process, number):
    print(os.getpid(), flush=True)
    os.kill(process or os.getpid(), number)
    time.sleep(600)

def hold(count):
    return len(b"1" * count)
"""


def run(code: str, stdin: str = "") -> list[str]:
    """The lines that a process prints which does not import PyTorch."""
    Path("work.py").write_text(WORK)
    code = f"from work import *\n{code}\nassert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_results_and_errors_of_the_child_are_those_of_the_parent() -> None:
    code = """
print(outcome(os.getpid) != os.getpid(), outcome(pow, 2, 3), outcome(input))
print(outcome(fail, errors.SettingError("needs 1", field="steps", value=0)))
print(outcome(fail, FileNotFoundError(2, "No such file", "a.txt")))
print(outcome(fail, typer.Abort()))
"""
    assert run(code, stdin="yes\n") == [
        "True 8 yes",
        "('SettingError', 'steps 0: needs 1', 'steps')",
        "('FileNotFoundError', \"[Errno 2] No such file: 'a.txt'\", None)",
        "('Abort', '', None)",
    ]


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_child_that_is_ended_is_an_error(signal: str) -> None:
    _, ended = run(f"handle_signals()\nprint(outcome(end, None, signal.{signal}))")
    assert ended == "('KilledError', 'the child process was killed (out of memory?)', None)"


def test_a_signal_before_the_work_begins_leaves_no_traceback() -> None:
    Path("work.py").write_text(WORK)
    code = """
from work import *
from erase_sd.child import in_child
import multiprocessing

def prepare():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

handle_signals()
try:
    in_child(multiprocessing.get_context("fork"), prepare, None, os.getpid)
except errors.RunError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the child process was killed" in done.stdout and done.stderr == ""


def test_a_parent_that_is_terminated_ends_its_child() -> None:
    child, ended = run("handle_signals()\nprint(outcome(end, os.getpid(), signal.SIGTERM))")
    assert ended == "('TerminatedError', '15', None)"
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


def test_a_program_s_own_children_outlive_an_interrupted_stage() -> None:
    code = """
import multiprocessing
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a script's background
own = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
own.start()
print(outcome(end, os.getpid(), signal.SIGINT)[0], own.is_alive())
own.kill()
"""
    assert run(code)[1:] == ["KeyboardInterrupt True"]


def test_a_process_that_may_not_have_children_says_so_in_one_line() -> None:
    code = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply(outcome, (os.getpid,)))
"""
    [line] = run(code)
    assert line.startswith(
        "('RunError', 'a daemonic process, such as a worker of multiprocessing.Pool"
    )


def test_peak_memory_is_that_of_the_largest_process() -> None:
    code = """
held = runtime.peak_memory() + 2**26  # a process inherits the peak of the one that started it
print(in_stage_process((), None, hold, held) == held, runtime.peak_memory() >= held)
"""
    assert run(code) == ["True True"]


def test_a_model_that_is_no_preset_s_may_need_any_package(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: list[tuple[str, ...]] = []

    def stage(unused: tuple[str, ...], *_: object, **__: object) -> tuple[Path, str]:
        hidden.append(unused)
        if len(hidden) % 2 == 0:
            raise KilledError("enough")
        return Path("runs/apple"), "cpu"

    monkeypatch.setattr(job, "in_stage_process", stage)
    nothing = contextlib.nullcontext(SimpleNamespace(detect_new=None))
    monkeypatch.setattr(ahead, "detecting_ahead", lambda *_, **__: nothing)
    for model in (None, "folder"):
        with pytest.raises(KilledError):
            job.run(["apple"], model=model)
    assert hidden == [UNUSED, UNUSED_BY_IMAGES, (), ()]  # its scheduler may be one that needs scipy


def test_the_process_that_scores_and_reports_imports_no_torch() -> None:
    run("import erase_sd.cli.job, erase_sd.report.page, erase_sd.scoring.stage")
