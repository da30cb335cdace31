"""`python -m erase_sd.bench.processes`: the speed-up by several processes, with one thread each.

Each stage runs with each number of processes, from the same erased encoder and with an empty cache, and
its files are compared byte for byte; those of `unlearn` may differ by rounding. Needs an otherwise idle
machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import hash_file, write_json
from .compare import machine

RUN = "apple"
STAGES = {
    "generate": ("generate", "--prompts", "prompts.txt", "--run", RUN),
    "attack": ("attack", "--run", RUN),
    "score": ("score", "--run", RUN),
    "evaluate": ("evaluate", "--run", RUN),
    "unlearn": ("unlearn", "--concept", RUN, "--run", "again", "--dtype", "fp32"),
}
"""Commands by stage."""
TIMED = ("run.json", "attacks.json", "attacks.md", "train.jsonl", "evaluation.json")
"""Files that hold times or names of folders, which are not compared."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One stage with one number of processes."""

    stage: str
    processes: int
    seconds: float
    """Wall time of the whole command."""
    ratio: float
    """Speed-up over the first number of processes, by default one."""
    same_files: bool
    """Whether the files are those of the first number of processes, byte for byte."""


def files_of(run: Path) -> dict[str, str]:
    """Hashes of everything in a run folder that does not hold times."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in TIMED)
    return {
        path.relative_to(run).as_posix(): hash_file(path)
        for path in files
        if not path.name.startswith(".")
    }


def launch(folder: Path, count: int, command: Sequence[str]) -> float:
    """Seconds of a command with `count` processes in a folder, with an empty cache."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    own = {"ERASE_SD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run(  # noqa: S603
        [sys.executable, "-m", "erase_sd", "launch", "-n", str(count), *command],
        cwd=folder, env=os.environ | own, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - began


def time_stage(
    before: Path, stage: str, counts: Sequence[int], extra: Sequence[str]
) -> list[Shared]:
    """Times the stage with each number of processes, each in a copy of the folder `before` it."""
    rows: list[Shared] = []
    alone: dict[str, str] = {}
    for count in counts:
        folder = before.with_name(f"{stage}-{count}")
        shutil.copytree(before, folder)
        seconds = launch(folder, count, (*STAGES[stage], *extra))
        files = files_of(folder / "runs")
        alone = alone or files
        first = rows[0].seconds if rows else seconds
        rows.append(
            Shared(
                stage=stage,
                processes=count,
                seconds=round(seconds, 1),
                ratio=round(first / seconds, 2),
                same_files=files == alone,
            )
        )
        print(row_of(rows[-1]), flush=True)
    return rows


def row_of(row: Shared) -> str:
    """A line of the table in Markdown."""
    return f"| {' | '.join(str(value) for value in asdict(row).values())} |"


def main() -> None:
    """Times the stages, prints the table and writes it."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench.processes")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["generate", "attack"])
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[1, 2], help="Numbers of processes."
    )
    parser.add_argument("--prompts", type=int, default=400, help="Prompts to generate.")
    parser.add_argument("--images", type=int, default=12, help="Images of each attack.")
    parser.add_argument("--out", type=Path, default=Path("processes.json"), help="File to write.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        before = Path(name) / "before"
        before.mkdir()
        prompts = [f"an apple, number {number}" for number in range(options.prompts)]
        (before / "prompts.txt").write_text("\n".join(prompts))
        launch(before, 1, ("unlearn", "--concept", RUN, "--method", "projection"))
        if {"score"} & {*options.stages}:
            launch(before, 1, STAGES["generate"])
        print("| stage | processes | seconds | ratio | same files |\n|---|--:|--:|--:|---|")
        rows = [
            row
            for stage in options.stages
            for row in time_stage(
                before, stage, options.counts,
                ("--images", str(options.images)) if stage == "attack" else (),
            )
        ]  # fmt: skip
    write_json(options.out, {"about": machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
