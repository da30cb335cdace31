"""The machine: what the process keeps of the memory that tensors free."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from erase_sd import runtime
from erase_sd.errors import ModelError

# How many blocks glibc has mapped for a large allocation: field `hblks` of malloc.h's mallinfo2.
COUNT = """
import ctypes
from erase_sd import runtime

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
{call}
before = libc.mallinfo2().hblks
libc.malloc(1 << 26)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc"
)
def test_large_tensors_are_no_longer_mapped_one_by_one() -> None:
    mapped = [
        subprocess.run(
            [sys.executable, "-c", COUNT.format(call=call)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for call in ("", "runtime.keep_freed_memory()")
    ]
    assert mapped == ["1", "0"]


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process has all cores")
def test_test_processes_do_not_compete_for_cores() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("could not create a primitive", True),  # oneDNN, for a buffer of its own
        ("could not create a primitive descriptor for a matmul primitive", False),  # unsupported
        ("expected scalar type Half but found Float", False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(message: str, expected: bool) -> None:
    assert runtime.is_out_of_memory(RuntimeError(message)) == expected


def test_batches_halve_when_memory_runs_out_and_every_item_is_answered_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 2:
            raise MemoryError
        return [10 * item for item in items]

    answers = list(runtime.in_batches(range(7), 5, work))
    assert [own for _, rows in answers for own in rows] == [10 * n for n in range(7)]
    assert tried == [5, 2, 2, 2, 1]
    assert "out of memory; continuing with batches of 2" in caplog.text


def test_an_item_that_does_not_fit_alone_is_an_error() -> None:
    def work(items: Sequence[int]) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match="out of memory with a batch of one"):
        list(runtime.in_batches(range(3), 3, work))
