"""Generates what the page shows: both images of a prompt and seed, and the detections in them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ...data.images import as_files
from ...detection.detector import DetectorAnswer, detect
from ...errors import RunError, SettingError
from ...models import erased as artifact
from ...models import pipeline, sampling
from ...models.presets import Models
from ...models.quiet import quiet_libraries
from ...models.t5 import denoising_model
from ...run import Run
from ..data import SHOWN_VARIANTS

if TYPE_CHECKING:
    from PIL.Image import Image

SEED_RULE = "needs a whole number from 0 to 2**63 - 1"


class Player:
    """A run's pipeline, opened once, with the original and the erased text encoders.

    Generates exactly as `generate` did for this run. Concurrent calls wait for one another, because
    they swap the encoders of one pipeline. Raises RunError if the run is not unlearned, or was
    unlearned from another model than `models`.
    """

    def __init__(self, run: Run, models: Models) -> None:
        self.run = run
        self.erasure = erasure = artifact.check_base(run, models)
        quiet_libraries()
        self.lock = threading.Lock()
        stages = run.record.stages
        classes = stages.score.classes if stages.score else {}
        self.targets: dict[str, str] = {
            c.name: classes.get(c.name, c.name.lower()) for c in erasure.concepts
        }
        """The detector's class of each concept."""
        self.detector, self.detector_text = models.detector_file(), models.detector_text_path()
        self.words = tuple(self.targets.values()) if self.detector_text else ()
        """Classes to add to an open-vocabulary detector."""
        settings = stages.generate.settings if stages.generate else {}
        self.steps: int = settings.get("steps", models.steps)
        self.guidance: float = settings.get("guidance", models.guidance)
        self.pipe = pipeline.open_pipeline(
            models.folder, settings.get("dtype", "auto"), settings.get("sampler", models.sampler)
        )
        self.modules = {
            "original": {name: getattr(self.pipe, name) for name in erasure.weights_sha256},
            "erased": artifact.load_all(run.folder, dtype=denoising_model(self.pipe).dtype),
        }

    def __call__(self, prompt: str, seed: int) -> tuple[list[Image], DetectorAnswer]:
        """The original's and the erased model's image, and the detections in them.

        Raises DataError if the prompt is too long, SettingError if it is empty or the seed is out of
        range, and RunError if the run has been removed or unlearned again since it was opened.
        """
        if self.run.erasure().weights_sha256 != self.erasure.weights_sha256:
            raise RunError(
                f"{self.run.folder}: unlearned again since this page was opened; play again"
            )
        if not prompt.strip():
            raise SettingError("the prompt is empty; type at least one word")
        if not 0 <= seed < 2**63:
            raise SettingError(SEED_RULE, field="seed", value=seed)
        pipeline.pipeline_token_limit(self.pipe).check([prompt], "the prompt")
        images: list[Image] = []
        with self.lock:
            for variant in SHOWN_VARIANTS:
                pipeline.swap(self.pipe, self.modules[variant])
                images += sampling.generate_batch(
                    self.pipe, [prompt], [seed], self.steps, self.guidance
                )
        with as_files(images) as files:
            return images, detect(self.detector, files, self.words, text_encoder=self.detector_text)
