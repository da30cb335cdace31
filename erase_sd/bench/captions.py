"""`python -m erase_sd.bench.captions`: time and memory of preparing an unlearning run, by captions.

Writes synthetic webdataset shards of each size and measures, in a process of its own with one thread, the
first reading (which indexes the shards), the second reading, and the split, tokens and image features.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .. import runtime
from ..data.concept import Concept, with_article
from ..data.readers import read_dataset
from ..data.shards import write_shards
from ..data.split import split_by_concept
from ..files import write_bytes, write_json
from ..models.presets import resolve
from ..models.quiet import quiet_libraries
from ..models.text_encoder import load_clip
from ..plotting import render_png
from ..scoring.table import markdown_table
from ..unlearning.captions import tokenize_sets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHARD = 10_000
"""Samples per shard, as in CC12M."""
PICTURES = 64
"""Different images, each used in many samples."""
WORDS = ("apple", "dog", "car", "chair", "kite", "cow", "cup", "laptop", "umbrella", "bicycle")
PLACES = ("on a table", "in a park", "by the road", "near the window", "at night", "in the rain")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a data set with that many captions, in CPU seconds of the measuring process; another one parses."""

    captions: int
    kept: int
    """Images kept in the forget and the retain set together."""
    first_reading: float
    second_reading: float
    preparation: float
    """Split, tokens, and features of the forget images."""
    peak_memory_mb: int


def three_thing_pairs(count: int) -> Iterator[tuple[bytes, str]]:
    """Pairs of a small JPEG and a caption that names three of ten things."""
    choice = random.Random(0)
    colours = [(4 * n, 255 - 4 * n, 16 * n % 256) for n in range(PICTURES)]
    pictures = [small_jpeg(colour) for colour in colours]
    for number in range(count):
        things = " and ".join(with_article(word) for word in choice.sample(WORDS, 3))
        yield pictures[number % PICTURES], f"{things} {choice.choice(PLACES)}, number {number}"


def small_jpeg(colour: tuple[int, int, int]) -> bytes:
    """A JPEG of 32 x 32 pixels in one colour."""
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "JPEG", quality=50)
    return out.getvalue()


def cost_of_shards(folder: Path, count: int) -> Cost:
    """Reads and prepares the shards in this process, whose peak memory is reported."""
    concepts = (Concept("apple"),)
    clip = load_clip(resolve("mini").clip_folder(0))
    times = [time.process_time()]
    for _ in range(2):
        data = read_dataset(folder, concepts)
        times.append(time.process_time())
    sets = split_by_concept(data.items, concepts)
    tokenize_sets(clip, data, sets, concepts, frozenset({"hidden_states"}))
    times.append(time.process_time())
    first, second, preparation = (b - a for a, b in itertools.pairwise(times))
    return Cost(
        captions=count,
        kept=len(data.items),
        first_reading=round(first, 2),
        second_reading=round(second, 2),
        preparation=round(preparation, 2),
        peak_memory_mb=round(runtime.peak_resident_set() / 1e6),
    )


def cost_of(count: int) -> Cost:
    """`cost_of_shards` of synthetic shards, in a process of its own with an empty cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        write_shards(folder / "shards", three_thing_pairs(count), SHARD)
        own = {"ERASE_SD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "erase_sd.bench.captions", "--captions", str(count)]
        command += ["--measure", str(folder / "shards")]
        answer = subprocess.run(  # noqa: S603
            command, env=os.environ | own, stdout=subprocess.PIPE, check=True
        )
        return Cost(**json.loads(answer.stdout))


def cost_lines(costs: Sequence[Cost]) -> str:
    """The costs in Markdown."""
    headings = [field.name.replace("_", " ") for field in fields(Cost)]
    lines = [[f"{value:,}" for value in asdict(cost).values()] for cost in costs]
    return markdown_table(headings, lines, text_columns=0)


def curve(costs: Sequence[Cost]) -> bytes:
    """Time and peak memory by the number of captions, as PNG."""
    captions = [cost.captions for cost in costs]

    def draw(figure: Figure) -> None:
        times, memory = figure.subplots(1, 2)
        for name in ("first_reading", "second_reading", "preparation"):
            times.loglog(
                captions, [getattr(c, name) for c in costs], "o-", label=name.replace("_", " ")
            )
        times.set(xlabel="captions", ylabel="seconds of one core")
        times.legend()
        memory.semilogx(captions, [cost.peak_memory_mb for cost in costs], "o-")
        memory.set(xlabel="captions", ylabel="peak memory, MB")
        memory.set_ylim(0, 1.1 * max(cost.peak_memory_mb for cost in costs))
        for axis in (times.xaxis, times.yaxis, memory.xaxis, memory.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.10g}")

    return render_png(draw, (9, 3.5))


def main() -> None:
    """Measures every size, prints the table, and writes it as JSON with a picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench.captions")
    parser.add_argument(
        "--captions", default=",".join(map(str, SIZES)), help="Sizes, separated by commas."
    )
    parser.add_argument("--out", type=Path, default=Path("captions.json"), help="File to write.")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.measure:
        print(json.dumps(asdict(cost_of_shards(options.measure, int(options.captions)))))
        return
    costs = [cost_of(int(size)) for size in options.captions.split(",")]
    write_json(options.out, [asdict(cost) for cost in costs])
    write_bytes(options.out.with_suffix(".png"), curve(costs))
    print(cost_lines(costs))


if __name__ == "__main__":
    main()
