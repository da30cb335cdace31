"""Pieces of work are done once, whoever is there; what a killed process leaves, another takes."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import filelock
import pytest
import torch
from faulty import fork, forked

from erase_sd.comparison import runner
from erase_sd.comparison.cell import GridSetup, attempt
from erase_sd.comparison.grid import Cell
from erase_sd.models.presets import Models
from erase_sd.sharing import claims as module
from erase_sd.sharing.claims import Claims

pytestmark = pytest.mark.forks(tensors=False)
NAMES = [f"piece {number}" for number in range(12)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads


def done(number: int) -> Path:
    return Path(f"done-{number}")


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work(number: int) -> None:
    assert not done(number).exists()
    time.sleep(0.01)
    done(number).write_text(str(os.getpid()))


def do_all() -> None:
    for number in Claims(Path("claims")).take(NAMES, lambda n: done(n).exists()):
        work(number)


def test_several_processes_do_every_piece_once() -> None:
    children = [fork(do_all) for _ in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    assert all(done(number).exists() for number in range(len(NAMES)))


def test_a_killed_process_s_piece_is_taken_over_while_the_others_wait() -> None:
    Path("claims").mkdir()

    def dies() -> None:
        for number in Claims(Path("claims")).take(NAMES[:1], lambda n: done(n).exists()):
            Path("begun").touch()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
            work(number)

    mortal = fork(dies)
    while not Path("begun").exists():
        time.sleep(0.01)
    notes: list[tuple[int, int, str]] = []
    for number in Claims(Path("claims")).take(
        NAMES[:1], lambda n: done(n).exists(), lambda *args: notes.append(args)
    ):
        work(number)
    assert status_of(mortal) == -signal.SIGKILL
    assert done(0).read_text() == str(os.getpid())
    assert notes[0] == (0, 1, "waiting for the other processes")
    assert notes[-2:] == [(0, 1, NAMES[0]), (1, 1, "")]


def test_a_failed_piece_is_tried_again_by_later_processes_only() -> None:
    earlier, now = Claims(Path("claims")), Claims(Path("claims"))
    assert not now.failure("a")
    earlier.fail("a", "diverged")
    assert now.failure("a") == earlier.failure("a") == "diverged"
    time.sleep(0.02)
    later = Claims(Path("claims"))
    assert not later.failure("a")
    for number in later.take(["a"], lambda n: done(n).exists()):
        work(number)
    assert not now.failure("a")
    later.clear(["a"])
    assert not Path("claims").exists()


@pytest.mark.parametrize(
    ("error", "claimed"),
    [
        (filelock.Timeout(""), False),
        (FileNotFoundError(), False),
        (NotImplementedError(), True),
    ],
    ids=["taken", "folder removed", "no locks"],
)
def test_a_piece_that_cannot_be_locked_is_left_unless_nothing_can_be(
    error: Exception, claimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with Claims(Path("claims"))._claimed("a") as own:
        assert own is claimed


def test_a_process_that_has_done_its_pieces_leaves_the_claims_on_others() -> None:
    mine, other = Claims(Path("claims")), Claims(Path("claims"))
    for _ in mine.take(["a"], lambda _: done(0).exists()):
        assert not [*other.take(["b"], lambda _: True)]
        other.clear(["b"])
        with other._claimed("a") as claimed:
            assert not claimed
        done(0).touch()
    mine.clear(["a"])
    assert not Path("claims").exists()


@pytest.mark.forks
def test_a_comparison_s_cells_are_taken_over_from_a_killed_process(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(cell: Cell, setup: GridSetup) -> str:
        if Path("mortal").exists() and Path("mortal").read_text() == str(os.getpid()):
            os.kill(os.getpid(), signal.SIGKILL)
        with Path("ran").open("a") as file:
            file.write(f"{cell}\n")
        return attempt(cell, setup)

    def compare(mortal: bool) -> None:
        if mortal:
            Path("mortal").write_text(str(os.getpid()))
        runner.compare(
            ["apple", "chair"], ["ga:steps=2"], models=tiny, seeds=1, out=Path("grid"),
            prompts_folder=None, images_per_prompt=1, dtype="fp32", images=False,
        )  # fmt: skip

    monkeypatch.setattr(runner, "in_own_process", in_this_process)
    assert forked(lambda: compare(mortal=True)) == -signal.SIGKILL
    children = [fork(lambda: compare(mortal=False)) for _ in range(2)]
    assert [status_of(child) for child in children] == [0, 0]
    ran = sorted(Path("ran").read_text().splitlines())
    assert ran == ["apple ga:steps=2 seed 0", "chair ga:steps=2 seed 0"]
    with Path("grid/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["concept"] for row in rows} == {"apple", "chair"}
    assert [row["reason"] for row in rows if row["measure"] == "failed"] == []
    assert not (Path("grid") / runner.CLAIMS).exists()
