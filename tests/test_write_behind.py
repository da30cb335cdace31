"""A batch is written while the next is generated: the files, errors and states are those of a plain loop."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from faulty import side_by_side

from erase_sd.errors import ModelError, RunError
from erase_sd.generation import batch as batches
from erase_sd.generation import write_behind
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.share import Share
from erase_sd.generation.stage import generate
from erase_sd.generation.write_behind import WriteBehind
from erase_sd.models.presets import Models
from erase_sd.run import Run

QUICK = GenerateSettings(steps=1, batch=2)
PROMPTS = [Path("apple.txt")]
GENEROUS = 60.0
"""Seconds after which an event that a test waits for is not going to happen."""


@pytest.fixture(autouse=True)
def prompts(isolated_folders: None) -> None:
    PROMPTS[0].write_text("".join(f"an apple number {i}\n" for i in range(5)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads
    yield
    torch.set_num_threads(threads)


def files_of(run: Run) -> dict[str, bytes]:
    """`images.jsonl` and everything under `images/`, half-written files too."""
    files = [run.folder / "images.jsonl", *(run.folder / "images").rglob("*")]
    return {str(p.relative_to(run.folder)): p.read_bytes() for p in files if p.is_file()}


def writing_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("ThreadPoolExecutor")]


def fresh(run: Run, patch: pytest.MonkeyPatch, cache: str) -> None:
    """Removes the run's images; later ones are cached elsewhere, so that nothing is reused."""
    shutil.rmtree(run.folder / "images", ignore_errors=True)
    (run.folder / "images.jsonl").unlink(missing_ok=True)
    patch.setenv("ERASE_SD_CACHE", cache)


def before(patch: pytest.MonkeyPatch, name: str, hook: Callable[[int], None]) -> None:
    """Has a function of the module of batches call `hook` with the number of the call, from 1."""
    function: Callable[..., Any] = getattr(batches, name)
    calls = 0

    def hooked(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        hook(calls)
        return function(*args)

    patch.setattr(batches, name, hooked)


def test_the_next_batch_begins_before_the_last_one_is_written(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    before(monkeypatch, "generate_batch", lambda call: began.set() if call == 2 else None)
    for name in ("png_of", "write_bytes"):  # the first batch cannot be written until then
        before(monkeypatch, name, lambda call: None if began.wait(GENEROUS) else pytest.fail(name))
    records = generate(PROMPTS, QUICK, tiny, erased_run)
    assert len(records) == 10


def test_one_batch_at_most_waits_however_slow_the_disk(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowestThread(ThreadPoolExecutor):
        """Does nothing before someone waits for it."""

        def submit(self, function: Any, *args: Any) -> Any:  # type: ignore[override]
            future: Future[None] = Future()
            future.result = lambda timeout=None: function(*args)  # type: ignore[method-assign]
            return future

    generated, written, waiting = 0, 0, []

    def generating(call: int) -> None:
        nonlocal generated
        waiting.append(generated - written)
        generated += 2 if call % 3 else 1

    def writing(call: int) -> None:
        nonlocal written
        written = call

    monkeypatch.setattr(write_behind, "ThreadPoolExecutor", SlowestThread)
    before(monkeypatch, "generate_batch", generating)
    before(monkeypatch, "write_bytes", writing)
    done = []
    generate(PROMPTS, QUICK, tiny, erased_run, lambda *own: done.append((*own, written)))
    assert waiting == [0, 2, 2, 1, 2, 2]
    assert done == [
        (count, 10, "original" if count <= 5 else "erased", count) for count in (2, 4, 5, 7, 9, 10)
    ]


@pytest.mark.parametrize(
    "image", ["original/apple-0001", "original/apple-0004", "erased/apple-0004"]
)
def test_a_file_that_cannot_be_written_is_one_line_and_the_run_resumes(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    order = [record.file for record in generate(PROMPTS, QUICK, tiny, erased_run)]
    expected = files_of(erased_run)
    fresh(erased_run, monkeypatch, "another-cache")
    obstacle = erased_run.folder / "images" / f"{image}.png"
    obstacle.mkdir(parents=True)
    words = ("generate", "--run", "apple", "--prompts", "apple.txt", "--steps", "1", "--batch", "2")
    answer = call(*words, "--model", str(tiny.model))
    assert answer.returncode == 1
    assert answer.stderr.splitlines() == [
        f"erase-sd: {Path('runs/apple/images', f'{image}.png')}: not a regular file, cannot be replaced"
    ]
    assert erased_run.status("generate") == "running"
    position = order.index(f"images/{image}.png")
    left = files_of(erased_run).keys() - {"images.jsonl"}
    assert left == set(order[:position])  # as in a plain loop
    batch = {1: 0, 4: 4, 9: 9}[position]  # the first image of the batch that failed
    assert [record.file for record in erased_run.images()] == order[:batch]
    obstacle.rmdir()
    generate(PROMPTS, QUICK, tiny, erased_run)
    assert files_of(erased_run) == expected


@pytest.mark.parametrize("error", [ModelError("not finite", field="dtype"), KeyboardInterrupt()])
def test_a_pass_that_ends_early_writes_the_batch_it_has_generated(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    generate(PROMPTS, QUICK, tiny, erased_run)
    expected = files_of(erased_run)
    fresh(erased_run, monkeypatch, "another-cache")
    ended = threading.Event()

    def end(call: int) -> None:
        if call == 2:
            ended.set()
            raise error

    with monkeypatch.context() as patch:
        before(patch, "generate_batch", end)
        before(patch, "png_of", lambda call: None if ended.wait(GENEROUS) else pytest.fail("waits"))
        with pytest.raises(type(error)):
            generate(PROMPTS, QUICK, tiny, erased_run)
    assert writing_threads() == []
    files = [f"images/original/apple-000{i}.png" for i in range(2)]
    assert [record.file for record in erased_run.images()] == files
    assert files_of(erased_run).keys() == {"images.jsonl", *files}
    generate(PROMPTS, QUICK, tiny, erased_run)
    assert files_of(erased_run) == expected


@pytest.mark.parametrize("disk_full", [False, True])
def test_memory_that_runs_out_while_a_batch_waits_halves_the_batch_unless_writing_failed(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, disk_full: bool
) -> None:
    generate(PROMPTS, dataclasses.replace(QUICK, batch=1), tiny, erased_run)
    expected = files_of(erased_run)
    fresh(erased_run, monkeypatch, "another-cache")
    ran_out, halved = threading.Event(), False

    def exhausted(call: int) -> None:
        nonlocal halved
        if call == 2:
            ran_out.set()
            raise torch.OutOfMemoryError
        halved = call > 2

    def writing(call: int) -> None:
        assert ran_out.wait(GENEROUS)
        if disk_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "apple-0000.png")

    before(monkeypatch, "generate_batch", exhausted)
    before(monkeypatch, "write_bytes", writing)
    if disk_full:
        with pytest.raises(OSError, match="No space left"):
            generate(PROMPTS, QUICK, tiny, erased_run)
        assert not halved and erased_run.images() == []
    else:
        generate(PROMPTS, QUICK, tiny, erased_run)
        assert files_of(erased_run) == expected


@pytest.mark.parametrize("error", [ModelError("not finite", field="dtype"), KeyboardInterrupt()])
def test_a_pass_that_ends_early_does_not_wait_for_another_process(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def end(call: int) -> None:
        if call == 2:  # while the batch of the process that never began is waited for
            raise error

    asked: list[int] = []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Share, "_is_absent", lambda _, number: not asked.append(number))
    before(monkeypatch, "generate_batch", end)
    with pytest.raises(type(error)):
        generate(PROMPTS, QUICK, tiny, erased_run)
    assert asked == [] == writing_threads()
    files = [f"images/original/apple-000{i}.png" for i in range(2)]
    assert [record.file for record in erased_run.images()] == files


@pytest.mark.forks
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count", [2, 4])
def test_processes_side_by_side_leave_the_same_files_as_one(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    settings = dataclasses.replace(QUICK, batch=1)
    generate(PROMPTS, settings, tiny, erased_run)
    expected = files_of(erased_run)
    fresh(erased_run, monkeypatch, "another-cache")
    assert (
        side_by_side(count, lambda _: generate(PROMPTS, settings, tiny, erased_run)) == [0] * count
    )
    assert files_of(erased_run) == expected
    assert not (erased_run.folder / ".batches").exists()


def test_nothing_runs_after_a_task_that_failed_and_its_error_is_the_one_that_is_raised() -> None:
    ran: list[int] = []
    ready = threading.Event()

    def failing() -> None:
        assert ready.wait(GENEROUS)
        raise RunError("first")

    with pytest.raises(RunError, match="first"):
        with WriteBehind(3) as behind:
            behind.add(failing)
            behind.add(lambda: ran.append(1))
            ready.set()
            raise ModelError("second", field="model")
    with pytest.raises(RunError, match="first"):
        with WriteBehind(2) as behind:
            behind.add(failing)
            for number in range(2):
                behind.add(lambda number=number: ran.append(number))
    with pytest.raises(KeyboardInterrupt):  # a signal is not hidden by what failed before it
        with WriteBehind(2) as behind:
            behind.add(failing)
            raise KeyboardInterrupt
    assert ran == []


@pytest.mark.parametrize("error", [RunError("failed"), KeyboardInterrupt()])
def test_tasks_that_were_added_run_even_if_the_block_fails(error: BaseException) -> None:
    ran: list[bool] = []
    with pytest.raises(type(error)):
        with WriteBehind(2) as behind:
            behind.add(lambda: ran.append(behind.stopped.wait(GENEROUS)))
            behind.add(lambda: ran.append(True))
            raise error
    assert ran == [True, True] and writing_threads() == []
