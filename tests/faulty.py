"""Faults: recording which were tried and survived, and processes that die where a test says."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

PRETEND_CARD = "ERASE_SD_PRETEND_CARD"
"""Environment variable that `pytest --pretend-card` sets, for the processes of tests."""
CALLS = ("fsync", "replace", "mkdir", "unlink")
"""System calls before which `killed_at` ends a process."""


def can_fork(tensors: bool = True) -> bool:
    """Whether a test may fork processes that use `tensors`: a GPU's driver does not survive it."""
    on_card = torch.cuda.is_available() or PRETEND_CARD in os.environ
    return hasattr(os, "fork") and not (tensors and on_card)


class Faults:
    """`with faults(kind, what): ...` tries one fault, which is survived if nothing is raised."""

    def __init__(self, node: pytest.Item) -> None:
        self.node, self.lost = node, list[str]()

    @contextlib.contextmanager
    def __call__(self, kind: str, what: str) -> Iterator[None]:
        survived = True
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            survived = False
            self.lost.append(f"{kind}, {what}: {''.join(traceback.format_exception(error)[-3:])}")
        finally:
            self.node.user_properties.append(("fault", (kind, what, survived)))


def write_table(reporter: pytest.TerminalReporter) -> None:
    """Prints how many distinct faults of each kind were tried and survived, of all workers together."""
    survived: dict[tuple[str, str], bool] = {}
    for reports in reporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    if name == "fault":
                        kind, what, held = value  # a fault of the same name twice counts once
                        survived[kind, what] = survived.get((kind, what), True) and bool(held)
    if not survived:
        return
    reporter.section("faults")
    for kind in [*sorted({kind for kind, _ in survived}), "all"]:
        own = [held for (name, _), held in survived.items() if kind in (name, "all")]
        reporter.write_line(f"{kind:<44} {len(own):>5} tried {sum(own):>5} survived")
    for (kind, what), held in survived.items():
        if not held:
            reporter.write_line(f"not survived: {kind}, {what}")


def forked(work: Callable[[], object]) -> int:
    """Exit status of a child that does `work`: 0, 1 after an exception, or minus a signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def side_by_side(count: int, work: Callable[[int], object]) -> list[int]:
    """Exit statuses of a launcher's `count` children, each of which does `work` of its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launched(number: int) -> None:
        own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in own.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        work(number)

    children = [fork(functools.partial(launched, number)) for number in range(count)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork(work: Callable[[], object]) -> int:
    """Process id of a child that does `work`."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        status = 1
        try:
            # PyTorch replaces its thread pool at its first use after a fork; two threads at once would
            # find none.
            torch.set_num_threads(torch.get_num_threads())
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def calls_of(work: Callable[[], object], log: Path) -> list[str]:
    """The calls of CALLS that `work` makes, in their order; it is done in a child."""

    def counted() -> None:
        with log.open("w") as file:
            _shim(lambda name: print(name, file=file, flush=True))
            work()

    assert forked(counted) == 0
    return log.read_text().split()


def killed_at(work: Callable[[], object], number: int) -> int:
    """Exit status of a child that is killed before its call `number`, from 0."""

    def mortal() -> None:
        left = number

        def count(_: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        _shim(count)
        work()

    return forked(mortal)


class DeclinedError(Exception):
    """The person at the terminal said no."""


class Decline:
    """An approval that is refused; remembers what it was asked for."""

    images: int = 0
    seconds: float | None = None

    def __call__(self, images: int, seconds: float | None) -> None:
        self.images, self.seconds = images, seconds
        raise DeclinedError


def _shim(count: Callable[[str], None]) -> None:
    for name in CALLS:
        setattr(os, name, _counting(name, getattr(os, name), count))


def _counting(
    name: str, call: Callable[..., object], count: Callable[[str], None]
) -> Callable[..., object]:
    def counting(*args: object, **options: object) -> object:
        count(name)
        return call(*args, **options)

    return counting
