"""A small scored run for the tests of the report: real images, and boxes that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erase_sd.data.concept import Concept
from erase_sd.generation import stage as generation
from erase_sd.mini.scenes import CLASSES
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import stage as scoring
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

MARKUP = "a <b>red</b> apple & an orange"
# Prompt, what is found in the original image, what in the erased one.
APPLE = (
    ("an apple", "apple", ""),
    ("a dog and an apple", "apple dog", "apple"),
    (MARKUP, "apple orange", "orange"),
    ("an apple in a park", "", ""),
    ("a green pomaceous fruit", "apple", "apple"),
)
RETAIN = (("an orange", "orange", "orange"), ("a couch", "couch", ""))


def make(tiny: Models, folder: Path, name: str = "apple") -> Run:
    """`folder/runs/<name>`, unlearned, drawn and scored; the detector's answers are the above."""
    run = Run(folder / "runs" / name)
    found = {arm: [row[i] for row in APPLE + RETAIN] for i, arm in ((1, "original"), (2, "erased"))}
    for file, prompts in (("apple.txt", APPLE), ("retain.txt", RETAIN)):
        (folder / file).write_text("".join(f"{row[0]}\n" for row in prompts))

    def answers(detector: Path, images: list[Path], *_: Any) -> dict[str, Any]:
        order = [f"apple-{i:04}" for i in range(len(APPLE))]
        order += [f"retain-{i:04}" for i in range(len(RETAIN))]
        rows = [found[path.parent.name][order.index(path.stem)].split() for path in images]
        boxes = [
            [{"class": name, "probability": 0.9 - i / 10, "box": [4.0 + 8 * i, 8.0, 20.0 + 8 * i, 24.0]}
             for i, name in enumerate(names)] + [{"class": "kite", "probability": 0.2, "box": [0.0, 0.0, 9.0, 9.0]}]
            for names in rows
        ]  # fmt: skip
        return {"names": CLASSES, "size": 64, "kind": "known answers", "rows": boxes}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        patch.setattr(scoring, "detect", answers)
        quick = {"steps": 2, "forget_batch": 4, "retain_batch": 4, "retain_floor": 0.0}
        concept = Concept("apple", ("pomaceous fruit",))
        unlearn(Settings(concepts=(concept,), validate_every=1, **quick), tiny, run)
        prompts = [folder / "apple.txt", folder / "retain.txt"]
        generation.generate(prompts, generation.Settings(steps=2, batch=4), tiny, run)
        scoring.score(run, tiny)
    return run
