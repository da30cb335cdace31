"""The unlearn stage: from caption pairs to erased text encoders in the run folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import runtime
from ..data.flickr30k import Dataset
from ..data.split import PARTS, Split, split, with_images
from ..errors import RunError
from ..files import hash_folder
from ..models import erased as artifact
from ..models.clip import Clip
from ..models.presets import Models
from ..models.text_encoder import TextEncoder, check_fit, load_clip, text_encoders
from ..run import Run, refuse_other
from .captions import rows_of
from .pairs import dataset_of
from .settings import Settings
from .trainer import Loop, Progress


def unlearn(
    settings: Settings, models: Models, run: Run, progress: Progress | None = None
) -> dict[str, float]:
    """Erases the concepts from every text encoder of `models`; leaves `erased/` in the run folder.

    Returns the measures on the held-out images, of the first encoder. An interrupted run goes on
    from its last checkpoint and ends with the same weights; one that is done with the same settings
    is left. Raises an EraseError for every cause that is the user's.
    """
    runtime.quiet_libraries()
    encoders, clips = text_encoders(models.folder), clips_of(models)
    for folder, encoder in zip(clips, encoders, strict=True):
        check_fit(folder, encoder.folder)
    data = dataset_of(models, settings.concepts)
    described = json.loads(json.dumps(dataclasses.asdict(settings))) | origin(models, data)
    if run.status("unlearn") == "done":
        before = run.manifest["stages"]["unlearn"]
        refuse_other(run.folder, "unlearn", before["settings"], described)
        artifact.check(run.folder / "erased")
        return dict(before["held_out"])
    sides = with_images(split(data.items, settings.concepts), data)
    if data.missing:
        runtime.say(
            f"{data.folder}: {len(data.missing)} of {len(data.items)} images are missing, first "
            f"{data.missing[0]}; their captions are left out"
        )
    # Damaged weights end it here, before a run folder begins; a second one, 10 GB, has to wait.
    clip = load_clip(clips[0], encoders[0])
    weights: dict[str, dict[str, Tensor]] = {}
    with run.stage("unlearn", described) as entry:
        run.update(models=models.given)
        entry["images"] = {
            f"{side}_{part}": len(getattr(sides, side)[part])
            for side in ("forget", "retain")
            for part in PARTS
        }
        for number, encoder in enumerate(encoders):
            clip = load_clip(clips[number], encoder) if number else clip
            weights[encoder.name], about = _erase(
                settings, clip, data, sides, run, encoder, progress
            )
            entry |= {encoder.name: about} if number else about
        del clip
        artifact.save(run.folder / "erased", weights, models, described, entry["held_out"])
        for checkpoint in run.folder.glob("checkpoint*.safetensors"):
            checkpoint.unlink()
    return dict(entry["held_out"])


def clips_of(models: Models) -> list[Path]:
    """The CLIP folder of each text encoder of the pipeline."""
    return [models.clip_folder(number) for number in range(len(text_encoders(models.folder)))]


def origin(models: Models, data: Dataset | None) -> dict[str, Any]:
    """What an erasure begins with, as hashes, beside its settings; without `data`, but the pairs."""
    clips = [hash_folder(folder, "*.safetensors", "*.json") for folder in clips_of(models)]
    pairs = {"data": data.digest, "missing_images": len(data.missing)} if data else {}
    return {"clip": clips, "model": models.fingerprint()} | pairs


def _erase(
    settings: Settings,
    clip: Clip,
    data: Dataset,
    sides: Split,
    run: Run,
    encoder: TextEncoder,
    progress: Progress | None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One text encoder's new weights, and how it went. What else the loop holds, several times the
    weights, ends with it."""
    loop = _loop(settings, clip, data, sides, run, encoder)
    loop.train(progress)
    about = {
        "steps": loop.step, "stopped": loop.stopped, "resumed_at": loop.resumed_at,
        "batches": list(loop.batches.sizes), "held_out": loop.measure("held-out"),
    }  # fmt: skip
    return {name: t.cpu() for name, t in loop.good.items()}, about


def _loop(
    settings: Settings, clip: Clip, data: Dataset, sides: Split, run: Run, encoder: TextEncoder
) -> Loop:
    """The loop over one text encoder, its rows made and its model on the device."""
    clip.model.to(runtime.device())
    reads = settings.build().reads
    forget = {p: rows_of(clip, data, sides.forget[p], settings.concepts, True) for p in PARTS}
    retain = {p: rows_of(clip, data, sides.retain[p], (), "images" in reads) for p in PARTS}
    for part in PARTS:
        if forget[part].mask.sum() == 0:
            raise RunError(f"{run.folder}: no {part} caption is left once the concept is taken out")
        if len(retain[part]) < 2:
            raise RunError(
                f"{run.folder}: one {part} caption without the concept; needs at least 2"
            )
    if settings.towers == "text" and "tower" not in reads:
        clip.model.vision_model.cpu()  # its features are made; the room is the text tower's
    return Loop(settings, clip, forget, retain, run, encoder.name.removeprefix("text_encoder"))
