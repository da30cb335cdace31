"""The attack stage: attacks on a run's erased concepts, as `attacks.json`, `attacks.md` and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from .. import runtime
from ..errors import RunError
from ..files import write_json, write_text
from ..models.features import report_unreadable
from ..models.pipeline import encoders_of
from ..models.presets import Models
from ..models.unet import UNET
from ..run import Run
from ..run.measurements import AttackRecord, AttacksRecord
from ..runtime import Progress
from ..scoring.rates import THRESHOLD
from ..scoring.stage import classes_of
from ..unlearning.pairs import concept_sets_of
from .attempt import Attempt
from .base import Attack
from .registry import build_attacks
from .settings import AttackSettings
from .table import attacks_markdown
from .target import Target, attacked_captions, cycled, open_models


def attack(
    run: Run,
    models: Models,
    settings: AttackSettings,
    detector_class: Sequence[str] = (),
    progress: Progress | None = None,
) -> AttacksRecord:
    """Attacks every erased concept of the run and records how often it is generated again.

    Each row is asked with held-out captions of the run's data. An attack that an earlier call has
    finished with the same settings is not repeated. Raises RunError unless the run was unlearned from
    `models` and its present data, and SettingError for a budget or detector class that does not exist.
    """
    attacks = build_attacks(settings.attacks, settings.budgets)
    runtime.quiet_libraries()
    work: list[tuple[Target, str, Attack | None]] = []
    for target in _targets(run, models, settings, detector_class):
        work += [(target, name, own) for name, own in {"none": None, **attacks}.items()]
    with run.lock():
        rows = _rows_of(run, models)
        for done, (target, name, own) in enumerate(work):
            if progress:
                progress(done, len(work), f"{target.concept.name}: {name}")
            attempt = Attempt(run, models, target, name, own)
            rows = attempt.update(rows)
            record = AttacksRecord(
                threshold=THRESHOLD,
                detector=models.detector_file().name,
                detector_sha256=models.detector_hash(),
                erased_sha256=run.erasure().weights_sha256,
                rows=tuple(rows),
            )
            write_json(run.folder / "attacks.json", asdict(record))
            write_text(run.folder / "attacks.md", attacks_markdown(run.name, record))
        if progress:
            progress(len(work), len(work), "")
    return record


def _targets(
    run: Run, models: Models, settings: AttackSettings, detector_class: Sequence[str]
) -> Iterator[Target]:
    """The run's concepts as targets, all of which share the models."""
    concepts = run.unlearned().concepts
    score = run.record.stages.score
    scored = [f"{name}={own}" for name, own in (score.classes if score else {}).items()]
    classes = classes_of(concepts, detector_class or scored)
    data, sets = concept_sets_of(run, models)
    pipe, modules = open_models(run, models)
    original = encoders_of(pipe)
    for concept in concepts:
        yield Target(
            pipe=pipe,
            original=original,
            erased={name: modules.get(name, own) for name, own in original.items()},
            unet=modules.get(UNET),
            concept=concept,
            detector=models.detector_file(),
            detector_text=models.detector_text_path(),
            detector_class=classes[concept.name],
            captions=cycled(
                attacked_captions(pipe, data, sets, concept, "held-out"), settings.images
            ),
            training=attacked_captions(pipe, data, sets, concept, "train"),
            seed=settings.seed,
            steps=settings.steps or models.steps,
            guidance=settings.guidance or models.guidance,
        )
    report_unreadable(data)


def _rows_of(run: Run, models: Models) -> list[AttackRecord]:
    """Rows of earlier calls; none if they are damaged, or were made with another detector."""
    try:
        record = run.attacks()
    except RunError:
        return []
    if record is None or record.detector_sha256 != models.detector_hash():
        return []
    return list(record.rows)
