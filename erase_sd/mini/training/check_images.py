"""Checks whether generated images show what their held-out captions mention."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ...data.coco import LOOK_ALIKES
from ...detection.worker import Detector
from ...models.choices import Sampler
from ...models.pipeline import open_pipeline
from ...models.presets import resolve
from ...models.sampling import generate_batch
from ...runtime import Precision
from .. import WEIGHTS
from ..captions import NAME_FREE_WORDINGS, SYNONYM_WORDINGS, Wording, describe_scene
from ..scenes import CLASS_OF, CLASSES, sample
from .check_models import CHECK_SEED, CaptionedScene, detected_classes, held_out_scenes
from .checklist import Checklist

_FIRST = CHECK_SEED + 30_000
_BATCH = 50


@dataclass(frozen=True)
class CheckedImage:
    """The classes that a caption mentions, and those detected in its generated image."""

    mentioned: tuple[str, ...]
    detected: frozenset[str]


class Generator:
    """Generates an image per caption with the original model, and detects what it shows."""

    def __init__(
        self,
        detector: Detector,
        dtype: Precision = "auto",
        sampler: Sampler | None = None,
        steps: int | None = None,
    ) -> None:
        models = resolve()
        self.pipe = open_pipeline(WEIGHTS / "sd", dtype, sampler or models.sampler)
        self.steps, self.guidance = steps or models.steps, models.guidance
        self.detector = detector
        self.seed = 7_000_000
        """Seed of the next image."""

    def __call__(self, source: Iterable[CaptionedScene], n: int) -> list[CheckedImage]:
        captioned = list(islice(source, n))
        checked = []
        for start in range(0, n, _BATCH):
            batch = captioned[start : start + _BATCH]
            seeds = range(self.seed, self.seed + len(batch))
            self.seed += len(batch)
            captions = [caption for _, caption in batch]
            images = generate_batch(self.pipe, captions, seeds, self.steps, self.guidance)
            for (scene, _), detections in zip(batch, self.detector(images), strict=True):
                mentioned = tuple(thing.name for thing in scene.things)
                checked.append(CheckedImage(mentioned, detected_classes(detections)))
        return checked


def check_images(checks: Checklist, generate: Generator) -> None:
    """Detection rates by number of things, class and wording; look-alikes; empty places."""
    singles = _check_single_things(checks, generate)
    hits: dict[str, list[bool]] = defaultdict(list)
    for name, images in singles.items():
        hits[name] += [name in image.detected for image in images]
    for title, count, least in (("two objects", 2, 0.95), ("three objects", 3, 0.85)):
        images = generate(held_out_scenes(count, _FIRST + 100_000 * count, "direct"), 300)
        outcomes = [(name, name in image.detected) for image in images for name in image.mentioned]
        checks.rate(title, sum(hit for _, hit in outcomes), len(outcomes), least)
        for name, hit in outcomes:
            hits[name].append(hit)
    for name in CLASSES:
        checks.rate(f"  {name}, one to three objects", sum(hits[name]), len(hits[name]), 0.9)
    _check_look_alikes(checks, singles)
    _check_wordings(checks, generate)
    # Captions of empty places are few, so none of them is held out.
    places = [sample(_FIRST + 700_000 + i, ()) for i in range(40)]
    captions = [describe_scene(scene, random.Random(scene.seed)).text for scene in places]
    empty = generate(zip(places, captions, strict=True), len(places))
    checks.rate(
        "empty places with nothing detected", sum(not i.detected for i in empty), len(empty)
    )


def _check_single_things(checks: Checklist, generate: Generator) -> dict[str, list[CheckedImage]]:
    """Images of one thing, by class."""
    singles = {}
    for i, name in enumerate(CLASSES):
        kinds = [kind for kind, class_name in CLASS_OF.items() if class_name == name]
        singles[name] = generate(held_out_scenes(1, _FIRST + 5_000 * i, "direct", kinds), 15)
    rates = [np.mean([name in i.detected for i in images]) for name, images in singles.items()]
    count = sum(map(len, singles.values()))
    checks.measure(
        "one object, macro over classes", float(np.mean(rates)), f"n={count}", least=0.99
    )
    return singles


def _check_look_alikes(checks: Checklist, singles: dict[str, list[CheckedImage]]) -> None:
    for a, b in LOOK_ALIKES:
        if a in CLASSES and b in CLASSES:
            wrong = sum(b in i.detected for i in singles[a]) + sum(
                a in i.detected for i in singles[b]
            )
            n = len(singles[a]) + len(singles[b])
            checks.measure(f"  {a} and {b} confused", wrong / n, f"n={n}", most=0.03)


def _check_wordings(checks: Checklist, generate: Generator) -> None:
    wordings: dict[Wording, Sequence[str]] = {
        "synonym": list(SYNONYM_WORDINGS),
        "name-free": list(NAME_FREE_WORDINGS),
    }
    for i, (wording, kinds) in enumerate(wordings.items()):
        source = held_out_scenes(1, _FIRST + 500_000 + 50_000 * i, wording, kinds)
        images = generate(source, 150)
        hits = sum(image.mentioned[0] in image.detected for image in images)
        checks.rate(f"{wording} captions", hits, len(images), 0.9)
