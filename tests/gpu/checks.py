"""Checks of `run.sh` on the run folders that it made: versions, equal weights, equal rates, costs.

Lines with a figure begin with `*`, as those of `erase_sd.bench`; the exit status is 3 if a check fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

from erase_sd.run import Run
from erase_sd.run.measurements import Rate, RateComparison


def versions(device: str) -> None:
    """Prints the device and the versions; fails if `device` is cuda and there is no GPU."""
    import torch

    from erase_sd import runtime

    print("* versions:", ", ".join(f"{k} {v}" for k, v in runtime.versions().items()))
    print("* device:", runtime.device())
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        cudnn = torch.backends.cudnn.version()
        print(f"* card: {about.name}, {about.total_memory / 1e9:.1f} GB, cuDNN {cudnn}")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU")


def weights(one: str, other: str) -> None:
    """Fails unless the second run was resumed and has the erased weights of the first, bit for bit."""
    from safetensors.torch import load_file

    a, b = (load_file(Run(Path(folder)).erased / "model.safetensors") for folder in (one, other))
    largest = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    result = next(iter(Run(Path(other)).unlearned().encoders.values()))
    print(f"* {other}: resumed at step {result.resumed_at} of {result.steps}")
    print(f"* {other}: largest difference of its weights from those of {one}: {largest:g}")
    sys.exit(3 if largest or not result.resumed_at else 0)


def rates(one: str, other: str) -> None:
    """Fails if a detection rate of one run lies outside of the other's 95 % interval, and the reverse."""
    apart = 0
    runs = Run(Path(one)), Run(Path(other))
    first, second = (_precision(run) for run in runs)
    for a, b in zip(*(run.scores().rates for run in runs), strict=True):
        disjoint = any(_disjoint(x, y) for x, y in ((a.original, b.original), (a.erased, b.erased)))
        print(f"* {a.concept}, {a.group}: {first} {_counts(a)}; {second} {_counts(b)}", end="")
        print(": INTERVALS APART" * disjoint)
        apart += disjoint
    sys.exit(3 if apart else 0)


def _precision(run: Run) -> str:
    settings = run.generated().settings
    return settings["dtype"] + ", compiled" * settings.get("compiled", False)


def _disjoint(one: Rate, other: Rate) -> bool:
    return one.high < other.low or other.high < one.low


def _counts(rate: RateComparison) -> str:
    before, after = rate.original, rate.erased
    return f"original {before.detected}/{before.n}, erased {after.detected}/{after.n}"


def costs(*folders: str) -> None:
    """Prints what each stage of the runs took."""
    for folder in folders:
        record = Run(Path(folder)).record
        stages = {name: getattr(record.stages, name) for name in ("unlearn", "generate", "score")}
        parts = [f"{n} {s.seconds} s, {s.peak_memory_mb} MB" for n, s in stages.items() if s]
        total = [f"{record.total.seconds} s in total"] if record.total else []
        print(f"* {folder}:", "; ".join(parts + total))


if __name__ == "__main__":
    commands = {"versions": versions, "weights": weights, "rates": rates, "costs": costs}
    commands[sys.argv[1]](*sys.argv[2:])
