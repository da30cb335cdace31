"""The machine: what the process keeps of the memory that tensors free."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from erase_sd import runtime

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
