"""Figures of a benchmark, in sections: one that fails, or that has no time left, says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import runtime

MARK = "*"
"""Begins each printed line with a figure; `tests/gpu/run.sh` collects these lines."""
DATA_SHEET = {"H100": 989e12, "H200": 989e12}
"""Dense bf16 FLOP/s of NVIDIA's cards (SXM) by a word of their name, from their data sheets."""


@dataclass
class Figures:
    """Rows with a figure each, printed as they come."""

    small: bool
    """Whether the models are tiny ones."""
    seconds: float
    """Time for all sections."""
    only: Sequence[str] = ()
    """Words of the names of the sections to run, if not all."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    matrix_rate: float | None = None
    """The device's own rate for a bf16 matrix product, FLOP/s."""

    @property
    def on_card(self) -> bool:
        """Whether a GPU is timed."""
        return runtime.device().type == "cuda"

    @property
    def brief(self) -> bool:
        """Whether each section does only a little: with tiny models, and on a CPU."""
        return self.small or not self.on_card

    def add(self, measure: str, value: float, unit: str, **about: Any) -> None:
        """Adds a figure."""
        self.rows.append({"measure": measure, "value": value, "unit": unit, **about})
        details = ", ".join(f"{name} {detail}" for name, detail in about.items())
        print(f"{MARK} {measure}: {value:.4g} {unit}" + f" ({details})" * bool(about), flush=True)

    def fail(self, measure: str, error: Exception, how: str = "failed") -> None:
        """Adds a row for a figure that could not be measured."""
        text = f"{type(error).__name__}: {error}"
        self.rows.append({"measure": measure, how: text[:2000]})
        print(f"{MARK} {measure}: {how.upper()}, {text.splitlines()[0][:200]}", flush=True)

    @property
    def failed(self) -> list[str]:
        """What could not be measured."""
        return [row["measure"] for row in self.rows if "failed" in row]

    def share(self, rate: float) -> dict[str, str]:
        """A rate in FLOP/s, and what share it is of the matrix product's and of the data sheet's."""
        about = {"TFLOP/s": f"{rate / 1e12:.3g}"}
        if self.matrix_rate:
            about["of matmul"] = f"{rate / self.matrix_rate:.1%}"
        if self.on_card:
            name = torch.cuda.get_device_name()
            about |= {
                f"of {c}": f"{rate / most:.1%}" for c, most in DATA_SHEET.items() if c in name
            }
        return about

    def section(self, name: str, work: Callable[[], None], needs: float = 0) -> None:
        """Runs `work` unless fewer seconds are left than it needs on a card."""
        if self.only and not any(word in name for word in self.only):
            return
        left = self.began + self.seconds - time.monotonic()
        needs = needs if self.on_card else 0
        if left < needs:
            self.rows.append({"measure": name, "skipped": f"needs {needs:.0f} s of {left:.0f} s"})
            print(f"{MARK} {name}: SKIPPED, needs {needs:.0f} s, {left:.0f} s left", flush=True)
            return
        began = time.monotonic()
        try:
            if self.on_card:
                torch.cuda.reset_peak_memory_stats()
            work()
        except Exception as error:  # the other sections can still be measured
            self.fail(name, error)
        about = {}
        if self.on_card:
            most = torch.cuda.get_device_properties(runtime.device()).total_memory
            allocated, reserved = (
                torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            )  # fmt: skip
            about = {"peak GB allocated": f"{allocated / 1e9:.2f}"}
            about |= {"reserved": f"{reserved / 1e9:.2f}", "of the card": f"{reserved / most:.0%}"}
        runtime.free_memory()
        self.add(f"section {name}", time.monotonic() - began, "s", **about)


def timed(work: Callable[[], object], repeats: int = 1, warm: int = 0) -> float:
    """Mean seconds of a call, the device's work included, after `warm` calls that are not timed."""
    began = 0.0
    for count in (warm, repeats):
        if runtime.device().type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            work()
    if runtime.device().type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats
