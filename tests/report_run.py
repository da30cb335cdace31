"""A small scored run for the tests of the report: real images, and detections that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from erase_sd.data.concept import Concept
from erase_sd.data.pair import CaptionPair
from erase_sd.detection.detector import DetectorAnswer
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.mini.scenes import CLASSES
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.run.measurements import Detection
from erase_sd.run.records import ImageRecord
from erase_sd.scoring import stage as scoring
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

MARKUP = "a <b>red</b> apple & an orange"
# Prompt, classes detected in the original image, classes detected in the erased one.
PROMPTS = {
    "apple": (
        ("an apple", "apple", ""),
        ("a dog and an apple", "apple dog", "apple"),
        (MARKUP, "apple orange", "orange"),
        ("an apple in a park", "", ""),
    ),
    "apple.synonym": (("a green pomaceous fruit", "apple", "apple"),),
    "retain": (("an orange", "orange", "orange"), ("a couch", "couch", "")),
}
PAIRS = sum(map(len, PROMPTS.values()))


def scored_run(tiny: Models, folder: Path, name: str = "apple") -> Run:
    """`folder/runs/<name>`, unlearned and generated for real; its detections are those of `PROMPTS`."""
    run = Run(folder / "runs" / name)
    files = []
    for stem, rows in PROMPTS.items():
        files.append(folder / f"{stem}.txt")
        files[-1].write_text("".join(f"{prompt}\n" for prompt, _, _ in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        patch.setattr("erase_sd.scoring.detections.detect", known_answers)
        settings = UnlearnSettings(
            concepts=(Concept("apple", ("pomaceous fruit",)),), steps=2, forget_batch=4,
            retain_batch=4, retain_floor=0.0, validate_every=1,
        )  # fmt: skip
        unlearn(settings, tiny, run)
        generate(files, GenerateSettings(steps=2, batch=4), tiny, run)
        scoring.score(run, tiny)
    return run


def known_answers(detector: Path, images: Sequence[Path], *_: Any) -> DetectorAnswer:
    """Stands in for `detect`: the classes of `PROMPTS`, and an improbable kite in every image."""
    kite = Detection(name="kite", probability=0.2, box=(0.0, 0.0, 9.0, 9.0))
    detections = []
    for path in images:
        stem, _, number = path.stem.rpartition("-")
        _, original, erased = PROMPTS[stem][int(number)]
        classes = {"original": original, "erased": erased}[path.parent.name].split()
        boxes = [
            Detection(
                name=name, probability=0.9 - i / 10, box=(4.0 + 8 * i, 8.0, 20.0 + 8 * i, 24.0)
            )
            for i, name in enumerate(classes)
        ]
        detections.append((*boxes, kite))
    return DetectorAnswer(
        names=tuple(CLASSES), size=64, kind="known answers", detections=detections
    )


def image_record(
    file: str, sha256: str = "", prompt: str = "an apple", seed: int = 7
) -> ImageRecord:
    """A row of `images.jsonl` for an original image."""
    pair = CaptionPair(caption=prompt, image=None, mentions=(), set="retain", split="held-out")
    return ImageRecord(
        file=file, variant="original", pair=pair, prompt_file="apple", text=prompt, seed=seed,
        steps=2, guidance=3.5, size=64, scheduler="DDIMScheduler", sampler=None, dtype="float32",
        weights="", batch=0, batch_key="",
        sha256=sha256,
    )  # fmt: skip
