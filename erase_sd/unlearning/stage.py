"""The unlearn stage: from caption pairs to erased text encoders in the run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import runtime
from ..data.flickr30k import Dataset
from ..data.split import ConceptSets, split_by_concept
from ..errors import NotErasedError, RunError
from ..methods.base import ClosedFormMethod, StagedMethod
from ..models import erased
from ..models.clip import Clip
from ..models.pipeline_kinds import not_erased, text_encoders
from ..models.presets import Models
from ..models.source import fingerprint
from ..models.text_encoder import check_fit, load_clip
from ..run import Run
from ..run.differences import refuse_other
from ..run.records import EncoderResult, Origin
from ..runtime import Progress, log
from .closed_form import solve
from .mentions import Mentions, log_mentions, mine_mentions, with_mentions
from .pairs import dataset_of
from .session import Session, open_session
from .settings import UnlearnSettings
from .staged import StagedTrainer
from .trainer import Trainer

SPACE = 6
"""Disk space that unlearning needs, in sizes of the text encoder: an old and a new checkpoint, each with
the weights and Adam's two moments."""


def unlearn(
    settings: UnlearnSettings, models: Models, run: Run, progress: Progress | None = None
) -> dict[str, float]:
    """Erases the concepts from all text encoders of `models`, and saves these in `erased/` of the run.

    Returns the metrics of the first encoder on the held-out images. An interrupted run resumes from
    its last checkpoint and ends with the same weights; a finished one is left as it is. Raises an
    EraseError for bad settings, data or weights, and for a run that began with others.
    """
    runtime.quiet_libraries()
    encoders, clips = text_encoders(models.folder), clips_of(models)
    for folder, encoder in zip(clips, encoders, strict=True):
        check_fit(folder, encoder.folder)
    data = dataset_of(models, settings.concepts)
    started_from = origin(models, data)
    values = dataclasses.asdict(settings)
    entry = {"concepts": values.pop("concepts"), "origin": dataclasses.asdict(started_from)}
    if run.status("unlearn") == "done":
        finished = _finished(run, values, entry)
        if finished is not None:
            return finished
    sets = _sets_of(data, settings)
    files = [path for encoder in encoders for path in encoder.folder.glob("*.safetensors")]
    runtime.check_space(run.folder, SPACE * sum(path.stat().st_size for path in files))
    # Damaged weights fail here, before the run folder is created. A second CLIP, 10 GB, loads later.
    clip = load_clip(clips[0], encoders[0])
    weights: dict[str, dict[str, Tensor]] = {}
    results: dict[str, EncoderResult] = {}
    with run.stage("unlearn", values, **entry) as stage:
        run.update(models=models.overrides)
        mentions = _mine(settings, clip, sets)
        concepts = with_mentions(settings.concepts, mentions)
        sets = sets.also_mentioned(concepts) if mentions else sets
        for number, encoder in enumerate(encoders):
            clip = load_clip(clips[number], encoder) if number else clip
            weights[encoder.name], results[encoder.name] = _unlearn_encoder(
                open_session(settings, clip, data, sets, concepts, run, encoder, started_from),
                progress,
            )
        del clip
        runtime.free_memory()
        stage["unreadable_images"] = sorted(data.unreadable)
        stage["encoders"] = {name: dataclasses.asdict(result) for name, result in results.items()}
        held_out = next(iter(results.values())).held_out
        erased.save(
            run.erased, weights, models, concepts=settings.concepts, settings=values,
            origin=started_from, held_out=held_out, mentions=mentions,
        )  # fmt: skip
        for checkpoint in run.folder.glob("checkpoint*.safetensors"):
            checkpoint.unlink()
    log_mentions(mentions)
    if left := not_erased(models.folder):
        log.warning("%s", left)
    return held_out


def _mine(settings: UnlearnSettings, clip: Clip, sets: ConceptSets) -> Mentions:
    """What else the captions call the concepts; empty for methods that have no use for it."""
    if not settings.mine_mentions or "hidden_states" not in settings.build().needs:
        return {}
    clip.model.to(runtime.device())
    return mine_mentions(clip, sets, settings.concepts)


def check_erased(run: Run, max_residual: float) -> None:
    """Raises NotErasedError if a finished run left the concept in one of its text encoders.

    An unlearning that changed nothing leaves a residual concept similarity of 1.
    """
    record = run.unlearned()
    for name, result in record.encoders.items():
        residual = result.held_out["residual_concept_similarity"]
        if residual > max_residual:
            concepts = ", ".join(concept.name for concept in record.concepts)
            raise NotErasedError(
                f"{run.folder}: {concepts} not erased from {name}: residual concept similarity "
                f"{residual:.2f} on the held-out captions, at most {max_residual:g} is allowed; the "
                "run's files are kept; try more steps, another learning rate or synonyms"
            )


def clips_of(models: Models) -> list[Path]:
    """CLIP folder of each text encoder of the pipeline."""
    return [models.clip_folder(number) for number in range(len(text_encoders(models.folder)))]


def origin(models: Models, data: Dataset | None) -> Origin:
    """Hashes of the weights and the data that an unlearning starts from.

    Without `data`, which the model may yet have to generate, its hash is empty.
    """
    return Origin(
        model=models.fingerprint(),
        clip=tuple(fingerprint(folder) for folder in clips_of(models)),
        data=data.digest if data else "",
        images=data.images_digest if data else "",
        missing_images=len(data.missing) if data else 0,
    )


def _finished(run: Run, settings: dict[str, Any], entry: dict[str, Any]) -> dict[str, float] | None:
    """Metrics of a finished run; None if its weights are damaged and have to be made again.

    Raises RunError if it has other settings.
    """
    record = run.unlearned()
    refuse_other(run.folder, record, settings, **entry)
    try:
        erased.check(run.erased)
    except RunError as error:
        log.warning("%s; unlearning again", str(error).removesuffix("; unlearn again"))
        return None
    return next(iter(record.encoders.values())).held_out


def _sets_of(data: Dataset, settings: UnlearnSettings) -> ConceptSets:
    sets = split_by_concept(data.items, settings.concepts).present(data)
    if data.missing:
        log.warning(
            "%s: %d of %d images are missing, first %s; their captions are left out",
            data.folder, len(data.missing), len(data.items), data.missing[0],
        )  # fmt: skip
    return sets


def _unlearn_encoder(
    session: Session, progress: Progress | None
) -> tuple[dict[str, Tensor], EncoderResult]:
    """New weights of one text encoder, and how its unlearning went."""
    method = session.settings.build()
    if isinstance(method, ClosedFormMethod):
        weights, result = solve(method, session)
    else:
        method = method.prepare(session.task)
        trainer = (
            StagedTrainer(method, session)
            if isinstance(method, StagedMethod)
            else Trainer(method, session)
        )
        weights, result = trainer.train(progress)
    return {name: tensor.cpu() for name, tensor in weights.items()}, result
