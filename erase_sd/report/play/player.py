"""Both images of one prompt and seed, with what was found in them: what the page shows."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import runtime
from ...detection.detector import detect
from ...errors import RunError, SettingError
from ...models import erased as artifact
from ...models import pipeline
from ...models.presets import Models
from ...run import Run

if TYPE_CHECKING:
    from PIL.Image import Image

ARMS = ("original", "erased")
SEEDS = "needs a whole number from 0 to 2**63 - 1"


class Player:
    """The pipeline of a run, opened once, with the original's and the erased text encoders.

    Draws as the run's own images were drawn. Calls wait for one another, for the encoders change
    places. `targets` are the detector's words for the concepts. Raises RunError before unlearning is
    done, and for a run of another model.
    """

    def __init__(self, run: Run, models: Models) -> None:
        stages = run.require("unlearn", "unlearn first")["stages"]
        described = artifact.check(run.folder / "erased")
        if described["base"]["fingerprint"] != models.fingerprint():
            raise RunError(
                f"{run.folder}: unlearned from {described['base']['model']}, not {models.model}"
            )
        runtime.quiet_libraries()
        self.one_at_a_time = threading.Lock()
        classes = stages.get("score", {}).get("settings", {}).get("classes", {})
        self.targets: dict[str, str] = {c: classes.get(c, c) for c in described["concepts"]}
        self.detector = models.detector_file()
        drawn = stages.get("generate", {}).get("settings", {})
        self.steps: int = drawn.get("steps", models.steps)
        self.guidance: float = drawn.get("guidance", models.guidance)
        self.pipe = pipeline.open_pipeline(models.folder)
        self.encoders = {
            "original": pipeline.encoders_of(self.pipe),
            "erased": {n: artifact.load(run.folder, n) for n in described["weights_sha256"]},
        }

    def __call__(self, prompt: str, seed: int) -> tuple[Image, Image, dict[str, Any]]:
        """The original's and the erased model's image, and what `detect` answers for the two.

        Raises DataError for a prompt that is too long, SettingError for an empty one and for a seed
        outside 0 to 2**63 - 1.
        """
        if not prompt.strip():
            raise SettingError("prompt: needs a word or more, got none")
        if not 0 <= seed < 2**63:
            raise SettingError(f"seed: {SEEDS}, got {seed}")
        pipeline.check_lengths(self.pipe, {prompt: "the box"})
        images: list[Image] = []
        with self.one_at_a_time:
            for arm in ARMS:
                pipeline.swap(self.pipe, self.encoders[arm])
                images += pipeline.draw(self.pipe, [prompt], [seed], self.steps, self.guidance)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, f"{arm}.png") for arm in ARMS]
            for image, file in zip(images, files, strict=True):
                image.save(file)
            found = detect(self.detector, files)
        return images[0], images[1], found
