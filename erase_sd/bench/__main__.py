"""`python -m erase_sd.bench --compare` times ours beside the rivals, and prints and writes the result."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .. import runtime
from ..files import write_json
from .compare import SideBySide, compare_generation, compare_unlearning, machine, time_job

HEADINGS = "| measure | ours, s | rival, s | ratio | ours detected % | rival detected % |"


def table(rows: Sequence[SideBySide]) -> str:
    """The comparisons in Markdown."""

    def cell(value: float | None, form: str = ".3g", factor: float = 1) -> str:
        return "" if value is None else f"{value * factor:{form}}"

    lines = [HEADINGS, "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        times = (cell(row.ours), cell(row.rival, ".4g"), cell(row.ratio, ".0f"))
        rates = (cell(r, ".1f", 100) for r in (row.ours_detected, row.rival_detected))
        lines.append(f"| {' | '.join((row.measure, *times, *rates))} |")
    return "\n".join(lines)


def main() -> None:
    """Times what was asked for; needs the machine for itself."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench")
    parser.add_argument(
        "--compare", action="store_true", required=True,
        help="Compare with a stock diffusers loop and a naive CLIPErase loop.",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each, of which the median.")
    parser.add_argument("--images", type=int, default=25, help="Images of each generation.")
    parser.add_argument("--job", action="store_true", help="Time `erase-sd run` as well.")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="File to write.")
    options = parser.parse_args()
    runtime.keep_freed_memory()
    runtime.quiet_libraries()
    rows = [compare_generation(options.repeats, options.images)]
    rows += compare_unlearning(options.repeats)
    rows += time_job(options.repeats) if options.job else []
    about = machine() | {"repeats": options.repeats, "images": options.images}
    comparisons = [asdict(row) | {"ratio": row.ratio} for row in rows]
    write_json(options.out, {"about": about, "comparisons": comparisons})
    print(", ".join(f"{name} {value}" for name, value in about.items()), table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
