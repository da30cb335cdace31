"""The machine: device, peak memory, versions of what shapes a result."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .errors import SettingError

if TYPE_CHECKING:
    import torch

PACKAGES = ("erase-sd", "torch", "transformers", "diffusers", "ultralytics", "pillow")


DTYPES = ("auto", "fp32", "bf16", "fp16")


def device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def dtype(name: str = "auto") -> torch.dtype:
    """The precision of that name; `auto`: bfloat16 on CUDA, float32 elsewhere.

    Raises SettingError for another name.
    """
    import torch

    if name not in DTYPES:
        raise SettingError(f"--dtype {name}: unknown; needs one of {', '.join(DTYPES)}")
    if name == "auto":
        name = "bf16" if device().type == "cuda" else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def say(line: str) -> None:
    """One line on stderr, for what a user should know and no result holds."""
    print(f"erase-sd: {line}", file=sys.stderr)


def keep_freed_memory() -> None:
    """Lets glibc, where there is one, keep what tensors free for the tensors that follow.

    By itself it maps each large tensor anew, and every page of it faults in again, which a virtual
    machine pays for dearly. For a program of its own: the setting is the process's.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def free_memory() -> None:
    """Hands cached device memory back, after an allocation failed."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def quiet_libraries() -> None:
    """Silences the progress bars and notices of transformers and diffusers, not their errors."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def peak_memory() -> int:
    """The most memory so far, in bytes: on CUDA what PyTorch held of the device's, else the largest
    resident set of this process or of its largest child."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def versions() -> dict[str, str]:
    """Python's version and those of the packages that shape a result."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
