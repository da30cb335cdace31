"""`python -m erase_sd.bench --compare` times ours beside the rivals, and prints and writes the result."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from .. import runtime
from ..files import write_json
from ..models.quiet import quiet_libraries
from ..scoring.table import markdown_table
from .compare import (
    NAIVE_STEPS,
    STOCK_STEPS,
    SideBySide,
    compare_generation,
    compare_unlearning,
    machine,
    time_job,
)
from .hardware import Bench

HEADINGS = ("measure", "ours, s", "rival, s", "ratio", "ours detected %", "rival detected %")


def table(rows: Sequence[SideBySide]) -> str:
    """The comparisons in Markdown."""

    def cell(value: float | None, form: str = ".3g", factor: float = 1) -> str:
        return "" if value is None else f"{value * factor:{form}}"

    lines = []
    for row in rows:
        times = (cell(row.ours), cell(row.rival, ".4g"), cell(row.ratio, ".0f"))
        rates = (cell(r, ".1f", 100) for r in (row.ours_detected, row.rival_detected))
        lines.append((row.measure, *times, *rates))
    return markdown_table(HEADINGS, lines, text_columns=1)


def time_preset(options: argparse.Namespace) -> None:
    """Times a model of full size with random weights, and writes the rows."""
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when PyTorch first looks for a GPU
    about = machine() | {"preset": options.preset, "small": options.small}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    bench = Bench(options.preset, options.small, options.seconds, options.only)
    try:
        bench.run()
    finally:
        write_json(options.out, {"about": about, "rows": bench.rows})


def time_comparison(options: argparse.Namespace) -> None:
    """Compares with the rivals; the file grows with each measure."""
    about = machine() | {
        "repeats": options.repeats, "images": options.images, "stock steps": STOCK_STEPS,
        "steps that the paper's recipe is computed from": NAIVE_STEPS,
    }  # fmt: skip
    measures: list[Callable[[], list[SideBySide]]] = [
        lambda: [compare_generation(options.repeats, options.images)],
        lambda: compare_unlearning(options.repeats),
        lambda: time_job(options.repeats) if options.job else [],
    ]
    rows: list[SideBySide] = []
    for measure in measures:
        rows += measure()
        comparisons = [asdict(row) | {"ratio": row.ratio} for row in rows]
        write_json(options.out, {"about": about, "comparisons": comparisons})
    print(", ".join(f"{name} {value}" for name, value in about.items()), table(rows), sep="\n\n")


def main() -> None:
    """Runs the timings that the options select; needs the machine for itself."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench")
    parser.add_argument(
        "--compare", action="store_true",
        help="Compare with a stock diffusers loop and a naive CLIPErase loop.",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=("sd15", "sdxl"),
        help="Time a model of that size with random weights on this machine.",
    )  # fmt: skip
    parser.add_argument("--random-weights", action="store_true", help="Download nothing.")
    parser.add_argument("--small", action="store_true", help="With tiny models, to try it out.")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="Device of --preset.")
    parser.add_argument("--seconds", type=float, default=150, help="Time for --preset.")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="WORD",
        help="Only the sections of --preset whose names contain one of these words.",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each, of which the median.")
    parser.add_argument("--images", type=int, default=25, help="Images of each generation.")
    parser.add_argument("--job", action="store_true", help="Time `erase-sd run` as well.")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="File to write.")
    options = parser.parse_args()
    if not (options.compare or options.preset):
        parser.error("needs --compare or --preset")
    runtime.keep_freed_memory()
    quiet_libraries()
    if options.preset:
        time_preset(options)
        return
    time_comparison(options)


if __name__ == "__main__":
    main()
