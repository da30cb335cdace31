"""Checks of `run.sh` on the run folders that it made: versions, equal weights, equal rates."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from erase_sd import runtime
from erase_sd.models.erased import load
from erase_sd.run import Run


def versions() -> None:
    """Prints the card and the versions."""
    print(runtime.device(), runtime.versions())
    if torch.cuda.is_available():
        print(torch.cuda.get_device_properties(0))


def weights(one: str, other: str) -> None:
    """Prints the largest difference of the erased weights; exit status 3 unless they are the same."""
    a, b = (load(Path(folder)).state_dict() for folder in (one, other))
    largest = max(float((a[name] - b[name]).abs().max()) for name in a)
    print(f"largest difference of {one} and {other}: {largest:g}")
    sys.exit(3 if largest else 0)


def rates(one: str, other: str) -> None:
    """Prints the detection rates of two runs side by side."""
    for a, b in zip(Run(Path(one)).scores().rates, Run(Path(other)).scores().rates, strict=True):
        print(f"apple: {one} {a}")
        print(f"apple: {other} {b}")


if __name__ == "__main__":
    {"versions": versions, "weights": weights, "rates": rates}[sys.argv[1]](*sys.argv[2:])
