"""The unlearn stage: from caption pairs to erased text encoders, or an erased U-Net."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import runtime
from ..data import parses
from ..data.dataset import Dataset
from ..data.split import ConceptSets, split_by_concept
from ..errors import NotErasedError, RunError, SettingError
from ..methods.base import ClosedFormMethod, StagedMethod
from ..methods.registry import METHODS
from ..models import erased
from ..models.blip import is_blip
from ..models.clip import Clip
from ..models.pipeline_kinds import TextEncoder, not_erased
from ..models.presets import Models
from ..models.quiet import quiet_libraries
from ..models.source import fingerprint
from ..models.text_encoder import check_fit
from ..models.towers import encoders_to_unlearn, load_towers
from ..models.unet import UNET
from ..run import Run
from ..run.differences import refuse_other
from ..run.records import EncoderResult, Origin
from ..runtime import Progress, log
from ..sharing import from_first, together, writes
from .closed_form import solve
from .mentions import Mentions, mention_lines, mine_mentions, with_mentions
from .pairs import dataset_of
from .session import Session, open_session
from .settings import UnlearnSettings
from .space import check_unlearning_space
from .staged import StagedTrainer
from .trainer import Trainer

CLIP_ONLY = frozenset({"hidden_states", "clip_layers", "denoiser"})
"""Needs that a BLIP cannot meet."""


def unlearn(
    settings: UnlearnSettings, models: Models, run: Run, progress: Progress | None = None
) -> None:
    """Erases the concepts from all text encoders of `models`, or from its U-Net, as the method does.

    Saves what changed in `erased/` of the run. An interrupted run resumes from its last checkpoint and
    ends with the same weights; a finished one is left as it is. A launcher's processes share the rows of
    each batch. Raises an EraseError for bad settings, data or weights, and for a run that began with others.
    """
    quiet_libraries()
    with together():
        _unlearn(settings, models, run, progress)


def _unlearn(
    settings: UnlearnSettings, models: Models, run: Run, progress: Progress | None
) -> None:
    encoders, clips = _fitting(models)
    data = dataset_of(models, settings.concepts)
    before = run.stages.unlearn
    started_from = origin(models, data, before.origin if before else None)
    values = dataclasses.asdict(settings)
    entry = {"concepts": values.pop("concepts"), "origin": dataclasses.asdict(started_from)}
    if from_first(lambda: _is_finished(run, models, values, entry)):
        return
    sets = _sets_of(data, settings)
    _check_method(settings, models)
    of_unet = settings.build().unlearns == "unet"
    modules = [UNET] if of_unet else [encoder.name for encoder in encoders]
    changed = clips if settings.towers == "both" else [encoder.folder for encoder in encoders]
    check_unlearning_space(run, settings, [models.folder / UNET] if of_unet else changed)
    # Damaged weights fail here, before the run folder is created. A second CLIP, 10 GB, loads later.
    clip = load_towers(clips[0], encoders[0])
    weights: dict[str, dict[str, Tensor]] = {}
    results: dict[str, EncoderResult] = {}
    with run.stage("unlearn", values, **entry) as stage:
        run.update(models=models.overrides)
        mentions = _mine(settings, clip, sets)
        concepts = with_mentions(settings.concepts, mentions)
        sets = sets.also_mentioned(concepts) if mentions else sets
        for number, (name, encoder) in enumerate(zip(modules, encoders, strict=False)):
            clip = load_towers(clips[number], encoder) if number else clip
            weights[name], results[name] = _unlearn_module(
                open_session(settings, clip, data, sets, concepts, run, encoder, started_from),
                progress,
            )
        del clip
        runtime.free_memory()
        stage["unreadable_images"] = sorted(data.unreadable)
        stage["encoders"] = {name: dataclasses.asdict(result) for name, result in results.items()}
        if writes():
            erased.save(
                run.erased, weights, models, concepts=settings.concepts, settings=values,
                origin=started_from, held_out=next(iter(results.values())).held_out,
                mentions=mentions,
            )  # fmt: skip
            for checkpoint in run.folder.glob("checkpoint*.safetensors"):
                checkpoint.unlink()
    for line in mention_lines(mentions):
        log.info("%s", line)
    if models.model is not None and (left := not_erased(models.folder)):
        log.warning("%s", left)


def _fitting(models: Models) -> tuple[list[TextEncoder], list[Path]]:
    """The text encoders to unlearn, and the CLIP of each. Raises ModelError if one does not fit."""
    encoders, clips = encoders_to_unlearn(models), clips_of(models)
    if models.model is not None:
        for folder, encoder in zip(clips, encoders, strict=True):
            check_fit(folder, encoder.folder)
    return encoders, clips


def _check_method(settings: UnlearnSettings, models: Models) -> None:
    """SettingError if the method needs what the model lacks: a U-Net, or CLIP's hidden states."""
    needs = METHODS[settings.method].needs
    if models.model is None and "denoiser" in needs:
        raise SettingError(
            "needs a U-Net, and a CLIP or BLIP alone has none",
            field="method", value=settings.method,
        )  # fmt: skip
    if CLIP_ONLY & needs and is_blip(models.clip_folder(0)):
        others = (n for n, m in METHODS.items() if not CLIP_ONLY & m.needs)
        raise SettingError(
            f"needs the hidden states of a CLIP; a BLIP is unlearned by {', '.join(others)}",
            field="method", value=settings.method,
        )  # fmt: skip


def _mine(settings: UnlearnSettings, clip: Clip, sets: ConceptSets) -> Mentions:
    """What else the captions call the concepts; empty if only the words that were given are erased."""
    if not settings.mine_mentions or not settings.build().erases_mentions:
        return {}
    clip.model.to(runtime.device())
    return mine_mentions(clip, sets, settings.concepts)


def check_erased(run: Run, max_residual: float) -> None:
    """Raises NotErasedError if a finished run left the concept in a text encoder, or in its U-Net.

    An unlearning that changed nothing leaves a residual concept similarity of 1, that of the features of
    a text encoder (`unlearning.metrics`) or of the predictions of a U-Net (`unlearning.unet_metrics`).
    """
    record = run.unlearned()
    for name, result in record.encoders.items():
        if (residual := result.residual) > max_residual:
            concepts = ", ".join(concept.name for concept in record.concepts)
            raise NotErasedError(
                f"{run.folder}: {concepts} not erased from {name}: residual concept similarity "
                f"{residual:.2f} on the held-out captions, at most {max_residual:g} is allowed; the "
                "run's files are kept; try more steps, another learning rate or synonyms"
            )


def clips_of(models: Models) -> list[Path]:
    """CLIP folder of each text encoder of the pipeline, or of the CLIP or BLIP alone."""
    return [models.clip_folder(number) for number in range(len(encoders_to_unlearn(models)))]


def origin(models: Models, data: Dataset | None, before: Origin | None = None) -> Origin:
    """Hashes of the weights and the data that an unlearning starts from.

    Without `data`, which the model may yet have to generate, its hashes are None. `before` is what the
    same unlearning recorded when it began, perhaps in an earlier version.
    """
    model, clips = ((before.model,), before.clip) if before else ((), ())
    return Origin(
        model=models.fingerprint(model),
        clip=tuple(fingerprint(folder, clips) for folder in clips_of(models)),
        data=data.digest if data else None,
        images=data.images_digest if data else None,
        missing_images=len(data.missing) if data else 0,
    )


def _is_finished(run: Run, models: Models, settings: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Whether the run is done; not if its weights are damaged and have to be made again.

    Records where models and data are now, for later stages. Raises RunError if it has other settings.
    """
    if run.status("unlearn") != "done":
        return False
    refuse_other(run.folder, run.unlearned(), settings, **entry)
    try:
        erased.check(run.erased)
    except RunError as error:
        log.warning("%s; unlearning again", str(error).removesuffix("; unlearn again"))
        return False
    if run.record.models != models.overrides:
        with run.lock():
            run.update(models=models.overrides)
    return True


def _sets_of(data: Dataset, settings: UnlearnSettings) -> ConceptSets:
    sets = split_by_concept(data.items, settings.concepts).present(data)
    if data.missing:
        log.warning(
            "%s: %d of %d images are missing, first %s; their captions are left out",
            data.folder, len(data.missing), len(data.items), data.missing[0],
        )  # fmt: skip
    return sets


@runtime.deterministic()
def _unlearn_module(
    session: Session, progress: Progress | None
) -> tuple[dict[str, Tensor], EncoderResult]:
    """New weights of a text encoder or of the U-Net, and how its unlearning went."""
    method = session.settings.build()
    parses.forget()  # all captions are tokens now, and the batches need the memory
    runtime.free_memory()
    if method.unlearns == "text_encoders":
        session.encoded("validation")  # later it would fragment the batches' memory
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
