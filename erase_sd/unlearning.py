"""The unlearn stage: from caption pairs to an erased text encoder in the run folder."""

from __future__ import annotations

import dataclasses
import json

from . import artifact, runtime
from .encoders import load_clip, text_encoder_with, trainable
from .errors import RunError
from .loop import Loop, Progress
from .pairs.flickr30k import read
from .pairs.split import PARTS, split
from .presets import Models
from .rows import rows_of
from .rundir import Run, refuse_other
from .settings import Settings


def unlearn(
    settings: Settings, models: Models, run: Run, progress: Progress | None = None
) -> dict[str, float]:
    """Erases the concepts from the text encoder of `models`; leaves `erased/` in the run folder.

    Returns the measures on the held-out images. An interrupted run goes on from its last
    checkpoint and ends with the same weights; one that is done with the same settings is left.
    Raises an EraseError for every cause that is the user's.
    """
    runtime.quiet_libraries()
    clip, data = load_clip(models.clip), read(models.pairs())
    described = {
        **dataclasses.asdict(settings),
        "clip": clip.digest,
        "data": data.digest,
        "model": models.fingerprint(),
    }
    described = json.loads(json.dumps(described))
    if run.status("unlearn") == "done":
        before = run.manifest["stages"]["unlearn"]
        refuse_other(run.folder, "unlearn", before["settings"], described)
        artifact.check(run.folder / "erased")
        return dict(before["held_out"])
    sides = split(data.items, settings.concepts, settings.seed)
    text_encoder_with(trainable(clip, "text"), models.model / "text_encoder")  # fits, or ends here
    with run.stage("unlearn", described) as entry:
        pooled = "features" in settings.build().reads
        forget = {p: rows_of(clip, data, sides.forget[p], settings.concepts, True) for p in PARTS}
        retain = {p: rows_of(clip, data, sides.retain[p], (), pooled) for p in PARTS}
        if forget["train"].mask.sum() == 0:
            raise RunError(f"{run.folder}: no caption is left once the concept is taken out")
        loop = Loop(settings, clip, forget, retain, run)
        loop.train(progress)
        entry["steps"] = loop.step
        entry["stopped"] = loop.stopped
        entry["images"] = {
            f"{side}_{p}": len(getattr(sides, side)[p])
            for side in ("forget", "retain")
            for p in PARTS
        }
        measures = loop.measure("held-out")
        entry["held_out"] = measures
        artifact.save(run.folder / "erased", loop.weights(), models, described, measures)
        loop.checkpoint.unlink(missing_ok=True)
    return measures
