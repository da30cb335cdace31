"""`python -m erase_sd.bench.growth`: time by the number of images and by the number of concepts.

Images are the miniature world's. Concepts are words of synthetic captions, which the closed form erases
from the miniature CLIP with all of their captions. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import runtime
from ..data.concept import Concept, with_article
from ..data.prompts import find_prompts, read_prompt_file
from ..data.shards import write_shards
from ..files import write_bytes, write_json
from ..models.pipeline import open_pipeline
from ..models.presets import resolve
from ..models.quiet import quiet_libraries
from ..models.sampling import default_batch, generate_batch
from ..plotting import render_png
from ..run import Run
from ..unlearning.settings import UnlearnSettings
from ..unlearning.stage import unlearn
from .captions import PLACES, small_jpeg
from .compare import CONCEPT, FIRST_SEED, machine

IMAGES = (1, 2, 5, 10, 25, 50, 100)
CONCEPTS = (1, 3, 10, 30, 100)
CAPTIONS = 40
"""Captions of each word."""
WORDS = (  # noqa: SIM905
    "apple acorn anchor arrow axe badge ball banana barrel basket bed bell belt bench bicycle boat book "
    "boot bottle bowl bread bridge broom bucket bus button camel camera candle cannon car carpet castle "
    "chair cherry clock cloud coat coin comb cow cup dog donkey door dress drum duck eagle elephant fan "
    "fence flag flute fork fox frog garlic gate glove goat guitar hammer harp hat hen horse house jacket "
    "kettle key kite knife ladder lamp lemon lion mirror monkey moon mop mouse nail needle onion owl "
    "parrot pear pencil piano pig pillow plate potato rabbit ring rope rose saddle scarf ship shoe sofa "
    "spoon swan sword table tent tiger tractor train tree trumpet tulip umbrella vase violin wagon wheel "
    "whistle window wolf zebra"
).split()
"""The first ones are erased; those beyond the largest number of concepts are never erased."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds for a number of images or concepts."""

    of: str
    """"images" or "concepts"."""
    count: int
    seconds: float


def image_costs(counts: Sequence[int]) -> Iterator[Timing]:
    """Images of the original model with the preset's sampler, in the default batches."""
    models = resolve()
    pipe = open_pipeline(models.folder, sampler=models.sampler)
    captions = read_prompt_file(find_prompts(CONCEPT)).texts
    size = default_batch(pipe)
    generate_batch(pipe, captions[:1], [0], models.steps, models.guidance)  # warms up
    for count in counts:
        prompts = [captions[number % len(captions)] for number in range(count)]
        began = time.perf_counter()
        for first in range(0, count, size):
            batch = prompts[first : first + size]
            seeds = range(FIRST_SEED + first, FIRST_SEED + first + len(batch))
            generate_batch(pipe, batch, seeds, models.steps, models.guidance)
        yield Timing(of="images", count=count, seconds=round(time.perf_counter() - began, 2))


def word_pairs() -> Iterator[tuple[bytes, str]]:
    """CAPTIONS pairs of each word, all with the same image."""
    picture, choice = small_jpeg((128, 128, 128)), random.Random(0)
    for number, word in enumerate(WORDS * CAPTIONS):
        yield picture, f"{with_article(word)} {choice.choice(PLACES)}, number {number}"


def concept_costs(counts: Sequence[int]) -> Iterator[Timing]:
    """Unlearning in closed form on all captions, from reading the data and models to saving.

    Sets `ERASE_SD_CACHE` for the rest of the process, so it is not for use in a library.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        write_shards(folder / "data", word_pairs(), len(WORDS) * CAPTIONS)
        os.environ["ERASE_SD_CACHE"] = str(folder / "cache")
        models = resolve(data=folder / "data")
        for number, count in enumerate((counts[0], *counts)):
            settings = UnlearnSettings(
                concepts=tuple(map(Concept, WORDS[:count])), method="projection",
                hyperparameters={"captions": CAPTIONS * max(counts)},
            )  # fmt: skip
            began = time.perf_counter()
            unlearn(settings, models, Run(folder / f"run{number}"))
            if number:  # the first one warms up
                seconds = round(time.perf_counter() - began, 2)
                yield Timing(of="concepts", count=count, seconds=seconds)


def curves(costs: Sequence[Timing]) -> bytes:
    """Seconds by the number of images, and by that of concepts, as PNG."""

    def draw(figure: object) -> None:
        for axes, of in zip(figure.subplots(1, 2), ("images", "concepts"), strict=True):  # type: ignore[attr-defined]
            own = [cost for cost in costs if cost.of == of]
            axes.plot([c.count for c in own], [c.seconds for c in own], "o-")
            axes.set(xlabel=of, ylabel="seconds", xlim=(0, None), ylim=(0, None))

    return render_png(draw, (8, 3.2))


def main() -> None:
    """Measures both curves, and writes them as JSON with a picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench.growth")
    parser.add_argument(
        "--images", nargs="+", type=int, default=IMAGES, help="Numbers of images to time."
    )
    parser.add_argument(
        "--concepts", nargs="+", type=int, default=CONCEPTS,
        help=f"Numbers of concepts to time, at most {len(WORDS) - 10}.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("growth.json"), help="File to write.")
    options = parser.parse_args()
    if max(options.concepts) > len(WORDS) - 10:
        parser.error(f"needs at most {len(WORDS) - 10} concepts")
    runtime.keep_freed_memory()
    quiet_libraries()
    costs = []
    for measured in (image_costs(options.images), concept_costs(options.concepts)):
        for cost in measured:
            costs.append(cost)
            print(f"{cost.count} {cost.of}: {cost.seconds} s", flush=True)
    write_json(options.out, {"about": machine(), "costs": [asdict(cost) for cost in costs]})
    write_bytes(options.out.with_suffix(".png"), curves(costs))


if __name__ == "__main__":
    main()
