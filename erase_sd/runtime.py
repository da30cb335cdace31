"""The machine and the process: device, precision, memory, versions, the logger."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, get_args

from .errors import ModelError, SettingError

if TYPE_CHECKING:
    import torch

PACKAGES = ("erase-sd", "torch", "transformers", "diffusers", "ultralytics", "pillow")

log = logging.getLogger("erase_sd")
"""Progress and non-fatal problems that no result records; the command line prints them on stderr."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Progress(Protocol):
    """Called as work advances: how much is done, of how much, and a note."""

    def __call__(self, done: int, total: int, note: str, /) -> None: ...


class Approval(Protocol):
    """Called before a long run with the number of images and the seconds they may take, if known.

    An implementation that asks the user raises an exception if the answer is no.
    """

    def __call__(self, images: int, seconds: float | None, /) -> None: ...


def device() -> torch.device:
    """CUDA if available, else Apple's MPS, else the CPU.

    Of several processes on a machine (`erase-sd launch`, torchrun), each has a GPU of its own.
    """
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # For `deterministic`; cuBLAS reads it at its first use.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if "LOCAL_RANK" not in os.environ:
            return torch.device("cuda")
        return torch.device("cuda", _variable("LOCAL_RANK", 0) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def processes() -> tuple[int, int]:
    """Rank and count of the processes, from the variables that `erase-sd launch` and torchrun set.

    A launcher also sets MASTER_ADDR; without it, the other variables are leftovers and this process is alone.
    Raises SettingError for variables that contradict each other.
    """
    if "MASTER_ADDR" not in os.environ:
        return 0, 1
    number, count = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    if not 0 <= number < count:
        raise SettingError(f"RANK={number} needs a WORLD_SIZE above it, got {count}; or unset both")
    return number, count


def _variable(name: str, default: int) -> int:
    """A whole number from the environment."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise SettingError(f"{name}={os.environ[name]} needs a whole number; or unset it") from None


def dtype(name: Precision = "auto") -> torch.dtype:
    """The torch dtype of a precision. Raises SettingError for an unknown name."""
    import torch

    check_precision(name)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return kinds[precision(name)]


def check_precision(name: str) -> None:
    """Raises SettingError for an unknown precision, without importing PyTorch."""
    if name not in PRECISIONS:
        raise SettingError(f"needs one of {', '.join(PRECISIONS)}", field="dtype", value=name)


def precision(name: Precision = "auto") -> Precision:
    """What `auto` stands for on this machine; any other precision is returned as it is.

    It is bf16 on CUDA and on a CPU with bfloat16 instructions (AVX-512 BF16 or AMX), else fp32:
    the processor is asked, not timed, so that the answer on a machine is always the same.
    """
    import torch

    if name != "auto":
        return name
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if device().type == "cuda" or (device().type == "cpu" and native) else "fp32"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later tensors instead of returning it to the system.

    By default it maps every large tensor anew, and each of its pages faults in again, which is slow,
    above all on virtual machines. The setting is process-wide: for programs, not for a library.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Inside, gradients on CUDA have the same bits in every run, at a small cost in speed.

    On a CPU they have anyway. An operation without a deterministic kernel raises RuntimeError, or warns
    if the program used CUDA before this package did, and without the setting that cuBLAS needs.
    """
    import torch

    if device().type != "cuda":
        yield
        return
    mode, debugging = torch.get_deterministic_debug_mode(), cast(Any, torch.utils.deterministic)
    filled = debugging.fill_uninitialized_memory
    # Attention has no deterministic gradient where other operations only warn.
    torch.use_deterministic_algorithms(True, warn_only="CUBLAS_WORKSPACE_CONFIG" not in os.environ)
    debugging.fill_uninitialized_memory = False  # a help for debugging, and slow
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        debugging.fill_uninitialized_memory = filled


def free_memory() -> None:
    """Returns unused memory to the system and the device: after a failed allocation, and between stages,
    so that the next stage does not come on top of what the last one has freed."""
    import torch

    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on the CPU PyTorch raises a plain RuntimeError."""
    import torch

    texts = "DefaultCPUAllocator|not enough memory|std::bad_alloc|out of memory|map segment"
    texts += "|could not create a primitive(?! descriptor)"  # oneDNN names no reason
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and re.search(texts, str(error)) is not None
    )


def in_batches(
    items: Sequence[Item], size: int, work: Callable[[Sequence[Item]], Answer]
) -> Iterator[tuple[Sequence[Item], Answer]]:
    """Batches of at most `size` items, each with the result of `work`; smaller ones if memory runs out.

    Raises ModelError if it runs out with a single item.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            answer = work(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError("out of memory with a batch of one; needs more memory") from None
            size = len(batch) // 2
            free_memory()
            log.warning("out of memory; continuing with batches of %d", size)
        else:
            yield batch, answer
            start += len(batch)


def peak_memory() -> int:
    """Peak memory so far, bytes: on CUDA what PyTorch reserved on the device, else `peak_resident_set`."""
    torch = sys.modules.get("torch")  # not imported for this: it takes 500 MB
    if torch and torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved(device()))
    return peak_resident_set()


def peak_resident_set() -> int:
    """The largest resident set so far, bytes, of this process or its largest child (on Windows, of this
    process). The detector's process runs beside this one, so both together hold more."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {package: version_of_package(package) for package in PACKAGES}


@functools.cache  # each stage records them all, and a package's metadata is slow to read
def version_of_package(package: str = "erase-sd") -> str:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
