"""Real signals between two steps: a checkpoint of that very step, from which training ends the same."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Faults
from unlearn_runs import same, short, weights

from erase_sd import termination
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.termination import SIGNALS, TerminatedError
from erase_sd.unlearning.stage import unlearn

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX"),
]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The program's handlers, and afterwards those of the tests."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    termination.handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signal_at(step: int, number: int = signal.SIGTERM) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize(
    ("method", "towers"),
    [
        ("cliperase-anchored", "text"),
        pytest.param("cliperase-hardened", "text", marks=pytest.mark.slow),
        pytest.param("cliperase", "both", marks=pytest.mark.slow),
        pytest.param("npo", "text", marks=pytest.mark.slow),
        pytest.param("emmn", "text", marks=pytest.mark.slow),
        pytest.param("lipschitz", "text", marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_any_step_leaves_a_checkpoint_of_it(
    method: str, towers: str, tiny: Models, faults: Faults
) -> None:
    settings = short(method=method, towers=towers, learning_rate=1e-3)
    expected = Run(Path("runs/whole"))
    unlearn(settings, tiny, expected)
    steps = [record.step for record in expected.training()]
    for step in range(1, max(steps), 2):
        with faults("signals", f"{method}, {towers}: SIGTERM at step {step}"):
            run = Run(Path(f"runs/{step}"))
            with pytest.raises(TerminatedError):
                unlearn(settings, tiny, run, signal_at(step))
            assert (run.folder / "checkpoint.safetensors").is_file()
            unlearn(settings, tiny, run)
            assert run.unlearned().encoders["text_encoder"].resumed_at == step
            assert same(weights(run), weights(expected))
            assert [record.step for record in run.training()] == steps
            shutil.rmtree(run.folder)


def test_a_signal_leaves_a_checkpoint_also_where_writing_one_is_slow(
    tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.unlearning import checkpoint

    monkeypatch.setattr(checkpoint, "BYTES_PER_SECOND", 1.0)  # every one is too early
    with faults("signals", "SIGTERM where checkpoints are slow"):
        run = Run(Path("runs/apple"))
        with pytest.raises(TerminatedError):
            unlearn(short(), tiny, run, signal_at(5))
        unlearn(short(), tiny, run)
        assert run.unlearned().encoders["text_encoder"].resumed_at == 5


def test_a_signal_that_is_ignored_stays_ignored(tiny: Models, faults: Faults) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    termination.handle_signals()
    with faults("signals", "SIGHUP under nohup"):
        unlearn(short(), tiny, Run(Path("runs/apple")), signal_at(3, signal.SIGHUP))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    termination.handle_signals()
    with faults("signals", "SIGHUP"), pytest.raises(TerminatedError):
        unlearn(short(), tiny, Run(Path("runs/other")), signal_at(3, signal.SIGHUP))


def test_a_signal_before_anything_has_changed_leaves_the_run_as_it_was(
    tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.generation import batch
    from erase_sd.generation.settings import GenerateSettings
    from erase_sd.generation.stage import generate

    run = Run(Path("runs/apple"))
    unlearn(short(), tiny, run)
    Path("apple.txt").write_text("an apple\n")
    generate([Path("apple.txt")], GenerateSettings(steps=1), tiny, run)
    before = (run.folder / "run.json").read_bytes()
    monkeypatch.setattr(batch, "generate_batch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setenv("ERASE_SD_CACHE", "another")
    with faults("states after a failure", "generate: SIGTERM in the first batch"):
        with pytest.raises(TerminatedError):
            generate([Path("apple.txt")], GenerateSettings(steps=2), tiny, run)
        assert (run.folder / "run.json").read_bytes() == before


def test_a_signal_while_a_batch_is_written_leaves_it_whole_and_the_run_resumes(
    tiny: Models, erased_run: Run, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.generation import batch
    from erase_sd.generation.settings import GenerateSettings
    from erase_sd.generation.stage import generate

    Path("apple.txt").write_text("an apple\na dog\nan orange\n")
    settings, files = GenerateSettings(steps=1, batch=2), [Path("apple.txt")]
    records = generate(files, settings, tiny, erased_run)
    expected = {record.file: (erased_run.folder / record.file).read_bytes() for record in records}
    shutil.rmtree(erased_run.folder / "images")
    (erased_run.folder / "images.jsonl").unlink()
    monkeypatch.setenv("ERASE_SD_CACHE", "another")
    generate_batch, write_bytes = batch.generate_batch, batch.write_bytes
    first, second = threading.Event(), threading.Event()

    def waits_for_the_signal(*args: Any) -> Any:
        images = generate_batch(*args)
        if first.is_set():
            second.set()
            while True:  # a wait without end would miss a signal that comes just before it
                time.sleep(0.01)
        first.set()
        return images

    def signals(path: Path, data: bytes) -> None:
        assert second.wait(60)
        if path.name == "apple-0000.png":
            os.kill(os.getpid(), signal.SIGTERM)
        write_bytes(path, data)

    with faults("signals", "generate: SIGTERM while a batch is written"):
        with monkeypatch.context() as patch, pytest.raises(TerminatedError):
            patch.setattr(batch, "generate_batch", waits_for_the_signal)
            patch.setattr(batch, "write_bytes", signals)
            generate(files, settings, tiny, erased_run)
        assert erased_run.images() == records[:2]
        left = [path for path in (erased_run.folder / "images").rglob("*") if path.is_file()]
        assert {path.relative_to(erased_run.folder).as_posix() for path in left} == {
            record.file for record in records[:2]
        }
        assert generate(files, settings, tiny, erased_run) == records
        for name, data in expected.items():
            assert (erased_run.folder / name).read_bytes() == data
