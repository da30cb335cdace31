"""What differs between two attempts at the same work, or between runs whose rates are compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import RunError
from .measurements import ScoresRecord
from .records import Stages, UnlearnRecord

SHAPE = (
    "model", "size", "steps", "sampler", "scheduler", "guidance", "dtype", "seed",
    "images_per_prompt", "versions",
)  # fmt: skip
"""Settings of `generate` that the images of comparable runs have in common."""


def refuse_other(
    folder: Path, before: UnlearnRecord, settings: dict[str, Any], **entry: Any
) -> None:
    """RunError if an unlearning would resume, or be reused, with other settings than it began with."""
    was = json.loads(json.dumps(dataclasses.asdict(before)))
    now = json.loads(json.dumps({"settings": settings, **entry}))
    pairs = {"concepts": (was["concepts"], now["concepts"])}
    for part in ("settings", "origin"):
        # The method first: other settings follow from it.
        for name in sorted({*was[part], *now[part]}, key=lambda name: (name != "method", name)):
            pairs[name] = (was[part].get(name), now[part].get(name))
    for name, (old, new) in pairs.items():
        if old != new:
            raise RunError(
                f"{folder}: unlearn began with {name} {brief(old)}, now it is {brief(new)}; use the "
                "same, choose another run name, or remove the folder"
            )


def brief(value: Any) -> str:
    """A value as JSON of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def different_settings(runs: Iterable[tuple[Stages, ScoresRecord | None]]) -> list[str]:
    """What several runs were generated and scored with that is not the same in all of them: settings, the
    content of prompt files of one name, the detector, the text encoder of its open vocabulary."""
    values: dict[str, set[str]] = {}
    for stages, scores in runs:
        generated = stages.generate.settings if stages.generate else {}
        own = {name: generated[name] for name in SHAPE if name in generated}
        if generated:
            own["compiled"] = generated.get("compiled", False)
        own |= {f"prompts {file}": sha256 for file, sha256 in generated.get("prompts", {}).items()}
        if stages.score:
            own["detector"] = stages.score.settings.get("detector_sha256")
        if scores:  # the stage's settings do not name it
            own["detector_text"] = [one.text_encoder_sha256 for one in scores.detectors]
        for name, value in own.items():
            values.setdefault(name.replace("_", " "), set()).add(json.dumps(value))
    return [name for name, of_runs in values.items() if len(of_runs) > 1]
