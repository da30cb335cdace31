"""The attack stage: attacks on a run's erased concepts, as `attacks.json`, `attacks.md` and images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import runtime
from ..detection.detector import detector_kept
from ..errors import RunError
from ..files import check_writable, write_json, write_records, write_text
from ..generation.cost import announce, check_image_space
from ..models.features import report_unreadable
from ..models.pipeline import encoders_of, image_size
from ..models.presets import Models
from ..models.quiet import quiet_libraries
from ..models.unet import UNET
from ..reading import read_records
from ..run import Run
from ..run.measurements import AttackRecord, AttacksRecord
from ..runtime import Approval, Progress
from ..scoring.classes import checked_classes
from ..scoring.rates import THRESHOLD
from ..sharing import meet, writes
from ..sharing.claims import Claims
from ..unlearning.pairs import concept_sets_of
from .attempt import Attempt
from .registry import build_attacks
from .settings import AttackSettings, is_recorded
from .table import attacks_markdown
from .target import Target, attacked_captions, cycled, open_models

OUTCOMES = ".attacks"
"""Folder in the run with the claims and outcomes of attacks that are not in `attacks.json` yet."""


@detector_kept()
def attack(
    run: Run,
    models: Models,
    settings: AttackSettings,
    detector_class: Sequence[str] = (),
    progress: Progress | None = None,
    approve: Approval | None = None,
) -> AttacksRecord:
    """Attacks every erased concept of the run and records how often it is generated again.

    The prompts of each row come from captions of the run's data, of the split that the settings name. An
    attack that an earlier call has finished with the same settings is not repeated. Before MANY_IMAGES or
    more, the minimum number of images and their time are logged and `approve` is called. A launcher's
    processes claim one attack at a time; the first writes the record. Raises RunError unless the run was
    unlearned from `models` and its present data, and SettingError for a budget or detector class that
    does not exist.
    """
    attacks = build_attacks(settings.attacks, settings.budgets)
    run.unlearned()
    check_writable(run.folder)
    quiet_libraries()
    attempts = [
        Attempt(run, models, target, name, own)
        for target in _targets(run, models, settings, detector_class)
        for name, own in {"none": None, **attacks}.items()
    ]
    names = [f"{attempt.target.concept.name}: {attempt.name}" for attempt in attempts]
    _announce(run, [attempt.target for attempt in attempts], settings.images, approve)
    with run.lock():
        meet()  # the others begin once the first has the lock
        outcomes = Outcomes(run, models, attempts)
        claims = Claims(outcomes.folder)
        for number in claims.take(names, outcomes.has, progress):
            outcomes.store(number)
            outcomes.record()
        record = outcomes.record()
        meet()
        if writes():
            outcomes.clear()
    return record


class Outcomes:
    """The attempts' rows: each process stores those of its own attempts; the record joins them."""

    def __init__(self, run: Run, models: Models, attempts: Sequence[Attempt]) -> None:
        self.run, self.models, self.attempts = run, models, attempts
        self.folder = run.folder / OUTCOMES
        judges = {attempt.target.concept.name: attempt.judge for attempt in attempts}
        self.earlier = _rows_of(run, models, judges, warn=writes())

    def has(self, number: int) -> bool:
        """Whether the rows of an attempt exist, from this call or an earlier one."""
        attempt = self.attempts[number]
        return attempt.is_among(self.earlier) or attempt.is_among(self._stored(attempt))

    def store(self, number: int) -> None:
        """Runs an attempt and stores its rows."""
        write_records(self._path(self.attempts[number]), self.attempts[number].outcome())

    def record(self) -> AttacksRecord:
        """All rows so far, in an order independent of the processes; the first one writes them."""
        rows = self.earlier
        for attempt in self.attempts:
            if not attempt.is_among(rows) and (stored := self._stored(attempt)):
                rows = attempt.added_to(rows, stored)
        record = AttacksRecord(
            threshold=THRESHOLD,
            detector=self.models.detector_file().name,
            detector_sha256=self.models.detector_hash(),
            erased_sha256=self.run.erasure().weights_sha256,
            rows=tuple(rows),
        )
        if writes():
            write_text(self.run.folder / "attacks.md", attacks_markdown(self.run.name, record))
            # Written last: it marks the attacks as done.
            write_json(self.run.folder / "attacks.json", asdict(record))
        return record

    def clear(self) -> None:
        """Removes the stored rows, which are in the record now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stored(self, attempt: Attempt) -> list[AttackRecord]:
        """An attempt's rows; none if they are missing or damaged."""
        try:
            return read_records(self._path(attempt), AttackRecord)
        except RunError:
            return []

    def _path(self, attempt: Attempt) -> Path:
        return self.folder / f"{attempt.key}.jsonl"


def _announce(run: Run, targets: Sequence[Target], images: int, approve: Approval | None) -> None:
    """Logs at least how many images a long run generates; RunError if the disk is too small.

    Counts one row per attempt; how many more an attack has depends on its budgets.
    """
    first, count = targets[0], len(targets) * images
    check_image_space(run.folder, count, image_size(first.pipe))
    if writes():
        announce(run.folder, first.pipe, count, first.steps, first.guidance, approve, at_least=True)


def _targets(
    run: Run, models: Models, settings: AttackSettings, detector_class: Sequence[str]
) -> Iterator[Target]:
    """The run's concepts as targets, which share the models."""
    concepts = run.unlearned().concepts
    score = run.record.stages.score
    scored = [f"{name}={own}" for name, own in (score.classes if score else {}).items()]
    classes = checked_classes(models, concepts, [*scored, *detector_class])
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
                attacked_captions(pipe, data, sets, concept, settings.split), settings.images
            ),
            split=settings.split,
            training=attacked_captions(pipe, data, sets, concept, "train"),
            seed=settings.seed,
            steps=settings.steps or models.steps,
            guidance=settings.guidance or models.guidance,
        )
    report_unreadable(data)


def _rows_of(
    run: Run, models: Models, judges: Mapping[str, Mapping[str, Any]], *, warn: bool = False
) -> list[AttackRecord]:
    """Rows of earlier calls; none if they are damaged, of other weights or made with another detector,
    and none of a concept whose class or text encoder was not that of `judges`. What is dropped is
    logged if `warn`.
    """
    why, rows = "", []
    try:
        record = run.attacks()
    except RunError as error:
        record, why = None, str(error)
    if record and record.detector_sha256 != models.detector_hash():
        theirs = f"{record.detector} (sha256 {record.detector_sha256[:12]})"
        why = f"{run.folder / 'attacks.json'}: made with the detector {theirs}"
    if record and not why:
        rows = [r for r in record.rows if is_recorded(judges.get(r.concept, {}), r.settings)]
        if other := sorted({r.concept for r in record.rows if r not in rows}):
            why = (
                f"{run.folder / 'attacks.json'}: {', '.join(other)}: judged with another detector "
                "class or text encoder"
            )
    if why and warn:
        runtime.log.warning("%s; its rows are dropped", why)
    return rows
