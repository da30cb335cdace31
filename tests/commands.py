"""Programs in a child that is forked from the test's process, and so begins with its imports.

With a GPU, whose driver does not survive a fork, it is spawned.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from faulty import PRETEND_CARD, can_fork

from erase_sd.cli import main

CONTEXT = multiprocessing.get_context("fork" if can_fork() else "spawn")
OUTPUT = Path("stdout"), Path("stderr")


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    returncode: int | None
    """Exit status, or minus the number of the signal that ended it."""
    stdout: str
    stderr: str


def call(
    *words: str,
    before: Callable[[], None] | None = None,
    program: Callable[[], None] = main,
    **env: str,
) -> Answer:
    """`erase-sd WORDS`, or another program, in a process of its own, which calls `before` first."""
    child = start(*words, before=before, program=program, **env)
    child.join()
    texts = [file.read_text() for file in OUTPUT]
    for file in OUTPUT:
        file.unlink()
    return Answer(child.exitcode, *texts)


def start(
    *words: str,
    before: Callable[[], None] | None = None,
    program: Callable[[], None] = main,
    **env: str,
) -> BaseProcess:
    """The process of `call`, which writes into the files of OUTPUT and may still run."""
    pickle.dumps((before, program))  # as a child that is spawned needs them, on every machine
    child = CONTEXT.Process(target=_run, args=(words, env, before, program))
    child.start()
    return child


def _run(
    words: Sequence[str],
    env: Mapping[str, str],
    before: Callable[[], None] | None,
    program: Callable[[], None],
) -> None:
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads
    for number, file in enumerate(OUTPUT, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ.update(env)
    if before:
        before()
    sys.argv = ["erase-sd", *words]
    with _device():
        program()


@contextlib.contextmanager
def _device() -> Iterator[None]:
    """The pretend GPU, if the tests run on it."""
    if PRETEND_CARD not in os.environ:
        yield
        return
    from pretend_card import pretend_card

    with pretend_card():
        yield
