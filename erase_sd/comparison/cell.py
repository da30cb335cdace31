"""One cell of a comparison: whether it is done, and its run from unlearning to evaluation."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..attacks.registry import build_attacks
from ..attacks.settings import AttackSettings, is_recorded
from ..attacks.stage import attack
from ..data.classes import TEMPLATES
from ..detection.detector import detector_kept, text_encoder_hash
from ..errors import EraseError, RunError
from ..evaluation.galleries import HELD_OUT
from ..evaluation.stage import evaluate
from ..files import hash_file
from ..generation.settings import GenerateSettings
from ..generation.stage import generate
from ..models.presets import Models
from ..run import Run
from ..run.records import Origin
from ..scoring.classes import classes_of
from ..scoring.stage import score
from ..unlearning.stage import origin as origin_of
from ..unlearning.stage import unlearn
from .grid import Cell


@dataclass(frozen=True, kw_only=True)
class GridSetup:
    """What all cells have in common."""

    models: Models
    origin: Origin
    """Hashes of what every unlearning starts from; those of its data are None if each run makes its own
    pairs."""
    prompts: dict[str, Path]
    """The prompt file of each concept."""
    generation: GenerateSettings
    images: bool
    """Whether images are generated and scored."""
    attacks: AttackSettings | None = None
    """Attacks on every erased model, on held-out captions; None: none."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """The detector's class of each concept; none without images."""

    def prompt_files(self, cell: Cell) -> list[Path]:
        """The cell's prompt files, `retain.txt` last."""
        files = [self.prompts[concept] for concept in cell.concepts]
        return [*files, files[0].with_name("retain.txt")]

    def detector_class(self, cell: Cell) -> list[str]:
        """The classes of the cell's concepts, as `classes_of` reads them."""
        names = [concept.name for concept in cell.settings().concepts]
        return [f"{name}={self.classes[name]}" for name in names if name in self.classes]


def attempt(cell: Cell, setup: GridSetup) -> str:
    """Runs a cell; returns why it failed, or nothing. A bug in one method must not end the grid."""
    try:
        _run(cell, setup)
    except EraseError as error:
        return " ".join(str(error).split())
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return " ".join(f"{type(error).__name__}: {error} ({where})".split())
    return ""


@detector_kept()
def _run(cell: Cell, setup: GridSetup) -> None:
    run = Run(cell.folder)
    unlearn(cell.settings(), setup.models, run)
    if setup.images:
        generate(setup.prompt_files(cell), setup.generation, setup.models, run)
        score(run, setup.models, setup.detector_class(cell))
    if setup.attacks:
        attack(run, setup.models, setup.attacks, setup.detector_class(cell))
    try:
        evaluated = _is_evaluated(run)
    except RunError:
        evaluated = False
    if not evaluated:
        evaluate(run, setup.models, None, TEMPLATES)


def is_done(cell: Cell, setup: GridSetup) -> bool:
    """Whether the run folder holds all results of the cell, intact, made with these very settings."""
    run = Run(cell.folder)
    try:
        return (
            run.status("unlearn") == "done"
            and _is_evaluated(run)
            and _is_erased(cell, setup, run)
            and (
                setup.attacks is None
                or _is_attacked(run, setup.attacks, setup.models, setup.detector_class(cell))
            )
            and (not setup.images or _is_scored(cell, setup, run))
        )
    except RunError:  # damaged: made again, or refused with the reason by the stage
        return False


def _is_scored(cell: Cell, setup: GridSetup, run: Run) -> bool:
    """Whether the run's images and scores are those of the setup's prompts and detector."""
    if run.status("generate") != "done" or run.status("score") != "done":
        return False
    wanted = setup.generation.with_defaults_of(setup.models)
    del wanted["batch"]  # its default depends on the opened pipeline; it changes pixels slightly
    wanted["prompts"] = {file.name: hash_file(file) for file in setup.prompt_files(cell)}
    text = text_encoder_hash(setup.models.detector_text_path())
    return (
        wanted.items() <= run.generated().settings.items()
        and run.scored().classes == classes_of(run.unlearned().concepts, setup.detector_class(cell))
        and run.scored().settings.get("detector_sha256") == setup.models.detector_hash()
        and all(own.text_encoder_sha256 == text for own in run.scores().detectors)
    )


def _is_erased(cell: Cell, setup: GridSetup, run: Run) -> bool:
    """Whether the run was unlearned with the cell's settings, from the same weights and data."""
    record, settings = run.unlearned(), cell.settings()
    wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
    del wanted["concepts"]
    if record.concepts != settings.concepts or not wanted.items() <= record.settings.items():
        return False
    origin, own = setup.origin, record.origin
    if (origin.model, origin.clip) != (own.model, own.clip):
        now, then = (origin_of(setup.models, None, before) for before in (None, own))
        if (origin.model, origin.clip) == (now.model, now.clip):  # as earlier versions took hashes
            origin = dataclasses.replace(origin, model=then.model, clip=then.clip)
    if origin.data is None:
        origin = dataclasses.replace(
            origin, data=own.data, images=own.images, missing_images=own.missing_images
        )
    return origin == own


def _is_evaluated(run: Run) -> bool:
    """Whether `evaluation.json` rests on the run's own CLIP and held-out pairs and the default templates."""
    evaluation = run.evaluation()
    if evaluation is None:
        return False
    about = evaluation.about
    held_out = about["data"]["kind"] == HELD_OUT
    own_clip = (about.get("clip_digest"),) == run.unlearned().origin.clip[:1]
    return held_out and own_clip and about.get("templates") == list(TEMPLATES)


def _is_attacked(
    run: Run, settings: AttackSettings, models: Models, detector_class: Sequence[str]
) -> bool:
    """Whether `attacks.json` has rows of every attack on every concept, with the setup's detector, its
    class and text encoder, its sampler, and all of `settings`."""
    record = run.attacks()
    if record is None or record.detector_sha256 != models.detector_hash():
        return False
    shape = {
        "images": settings.images, "split": settings.split, "seed": settings.seed,
        "steps": settings.steps or models.steps, "guidance": settings.guidance or models.guidance,
        "sampler": models.sampler,
        "detector_text_sha256": text_encoder_hash(models.detector_text_path()),
    }  # fmt: skip
    attacks = build_attacks(settings.attacks, settings.budgets)
    wanted = {name: shape | {"budgets": own.budgets_json()} for name, own in attacks.items()}
    classes = classes_of(run.unlearned().concepts, detector_class)
    done = {
        (r.attack, r.concept)
        for r in record.rows
        if r.attack in wanted and r.concept in classes
        if is_recorded(wanted[r.attack] | {"detector_class": classes[r.concept]}, r.settings)
    }
    return {(attack, concept) for attack in settings.attacks for concept in classes} <= done
