"""Runs the cells of a comparison that are not done, and writes the results."""

from __future__ import annotations

import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import runtime
from ..attacks.settings import AttackSettings
from ..attacks.target import check_unet
from ..data.concept import joined_slug, slug
from ..data.prompts import find_prompts, read_prompt_file
from ..data.readers import read_dataset
from ..errors import EraseError, RunError, SettingError
from ..files import check_writable
from ..generation.settings import GenerateSettings
from ..models.presets import Models
from ..models.tokens import token_limit_of
from ..report.contact_sheet import contact_sheet
from ..run import Run
from ..runtime import Approval, Precision, Progress
from ..scoring.classes import checked_classes
from ..sharing import writes
from ..sharing.claims import Claims
from ..unlearning.settings import parse_concepts
from ..unlearning.stage import origin
from .cell import GridSetup, is_done
from .grid import Cell, cells_of
from .own_process import in_own_process
from .results import measures_of, write_results
from .tables import Table

NO_CLASS = "name the class that shows the concept, a detector that has one, or skip the images"
CHANGED = "run again with other settings by another process; compare into a folder of its own"
CLAIMS = ".claims"
"""Folder in `out` with the claims of the cells."""


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; empty in all but the first of a launcher's processes."""

    folder: Path
    tables: list[Table]
    failed: list[tuple[Cell, str]]
    """Cells without results, and why."""


def compare(
    concepts: Sequence[str],
    methods: Sequence[str],
    *,
    models: Models,
    seeds: int,
    out: Path,
    prompts_folder: Path | None,
    images_per_prompt: int,
    dtype: Precision,
    images: bool,
    attacks: Sequence[str] = (),
    detector_class: Sequence[str] = (),
    progress: Progress | None = None,
    approve: Approval | None = None,
) -> Comparison:
    """Runs the grid and writes `comparison.csv`, `comparison.md`, the figures and a contact sheet of
    each concept into `out`.

    Without a `prompts_folder` each concept's prompts are those of `find_prompts`. All processes that
    compare into `out`, whether a launcher's, on several machines, or started later, share the cells;
    the first of each launch writes the results at the end. Raises EraseError, before anything starts,
    for what no cell could run with; a cell that fails later becomes a row with its reason. `approve` is
    called with the number of images that are to be generated.
    """
    cells = cells_of(concepts, methods, seeds, out)
    if attacks and not images:
        rule = "attacks need images; leave out either the attacks or the skipping of images"
        raise SettingError(rule, field="attacks", value=" ".join(attacks))
    generation = GenerateSettings(images_per_prompt=images_per_prompt, dtype=dtype)
    prompts = _prompt_files(cells, prompts_folder) if images else {}
    start = origin(models, None if models.data == "synth" else read_dataset(models.pairs()))
    classes = _checked_images(models, prompts, detector_class) if images else {}
    if attacks:
        check_unet(models)
    check_writable(out)
    setup = GridSetup(
        models=models, origin=start, prompts=prompts, generation=generation, images=images,
        attacks=AttackSettings(attacks=tuple(attacks)) if attacks else None, classes=classes,
    )  # fmt: skip
    if approve and images and writes():
        approve(_images_to_make(cells, setup), None)
    reasons = _run_all(cells, setup, Claims(out / CLAIMS), progress)
    if not writes():
        return Comparison(out, [], [])
    command = _command(concepts, methods, seeds, setup, prompts_folder)
    return _collect(cells, reasons, setup, out, command)


def _checked_images(
    models: Models, prompts: dict[str, Path], detector_class: Sequence[str]
) -> dict[str, str]:
    """The detector's class of each concept. Raises whatever `generate` or `score` would in every cell: for
    a CLIP alone, a prompt file that cannot be used, and a concept that the detector has no class for."""
    limit = token_limit_of(models)
    _ = models.folder  # a CLIP alone has none: SettingError
    files = (own for file in prompts.values() for own in (file, file.with_name("retain.txt")))
    for file in dict.fromkeys(files):
        prompt_file = read_prompt_file(file)
        limit.check(prompt_file.texts, prompt_file.stem)
    concepts = [concept for name in prompts for concept in parse_concepts((name,))]
    return checked_classes(models, concepts, detector_class, NO_CLASS)


def _images_to_make(cells: Sequence[Cell], setup: GridSetup) -> int:
    """Images of both models in all cells that are not done, without those of the attacks."""
    pending = [cell for cell in cells if not is_done(cell, setup)]
    files = [file for cell in pending for file in setup.prompt_files(cell)]
    lines = {file: len(read_prompt_file(file).texts) for file in dict.fromkeys(files)}
    prompts = sum(lines[file] for file in files)
    return 2 * prompts * setup.generation.images_per_prompt


def _prompt_files(cells: Sequence[Cell], folder: Path | None) -> dict[str, Path]:
    concepts = dict.fromkeys(concept for cell in cells for concept in cell.concepts)
    return {
        concept: folder / f"{slug(concept)}.txt" if folder else find_prompts(concept)
        for concept in concepts
    }


def _collect(
    cells: Sequence[Cell], reasons: dict[int, str], setup: GridSetup, out: Path, command: str
) -> Comparison:
    """Writes all results; `reasons` has the cells that failed, by number.

    A cell that a comparison with other settings into the same folder has run again since counts as failed.
    """
    changed = {i: CHANGED for i, cell in enumerate(cells) if not is_done(cell, setup)}
    reasons = changed | reasons
    attacks = setup.attacks.attacks if setup.attacks else ()
    rows = [
        row
        for i, cell in enumerate(cells)
        for row in measures_of(cell, setup.images, reasons.get(i, ""), attacks)
    ]
    tables = write_results(out, rows, command)
    if setup.images:
        _write_sheets(cells, reasons, out)
    return Comparison(out, tables, [(cells[i], reasons[i]) for i in sorted(reasons)])


def _run_all(
    cells: Sequence[Cell], setup: GridSetup, claims: Claims, progress: Progress | None
) -> dict[int, str]:
    """Runs cells that no other process has claimed, until all are done; returns the failures of all
    processes, by cell number."""
    names = [str(cell) for cell in cells]
    failed: dict[int, str] = {}

    def is_settled(number: int) -> bool:
        try:
            reason = claims.failure(names[number])
            if not reason and not is_done(cells[number], setup):
                return False
        except EraseError as error:
            reason = str(error)
        if reason:
            failed[number] = reason
        return True

    for number in claims.take(names, is_settled, progress):
        if reason := in_own_process(cells[number], setup):
            failed[number] = reason
            claims.fail(names[number], reason)
    claims.clear(names)
    return failed


def _command(
    concepts: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    setup: GridSetup,
    prompts_folder: Path | None,
) -> str:
    """The command that gives the same comparison; files and folders by name only."""
    words = ["erase-sd", "compare", "--concepts", *concepts, "--methods", *methods]
    words += ["--seeds", str(seeds)]
    for option, value in setup.models.overrides.items():
        for one in value if isinstance(value, list) else [value]:
            if one != "mini":
                words += [
                    f"--{option.replace('_', '-')}",
                    Path(one).name if Path(one).exists() else str(one),
                ]
    for name, own in setup.classes.items():
        if own != name.lower():
            words += ["--detector-class", f"{name}={own}"]
    if setup.attacks:
        words += ["--attacks", *setup.attacks.attacks]
    if not setup.images:
        return shlex.join([*words, "--skip-images"])
    generation = setup.generation
    words += ["--images-per-prompt", str(generation.images_per_prompt), "--dtype", generation.dtype]
    return shlex.join(
        [*words, *(["--prompts-folder", prompts_folder.name] if prompts_folder else [])]
    )


def _write_sheets(cells: Sequence[Cell], failed: Container[int], out: Path) -> None:
    """A contact sheet of each concept: the original's first images above those of every spec, of the
    first seed. One of an earlier comparison never stays in its place."""
    for concepts in dict.fromkeys(cell.concepts for cell in cells):
        runs = {
            str(cell.spec): Run(cell.folder)
            for i, cell in enumerate(cells)
            if i not in failed and (cell.concepts, cell.seed) == (concepts, 0)
        }
        path = out / f"{joined_slug(concepts)}.png"
        path.unlink(missing_ok=True)
        if runs:
            try:
                contact_sheet(list(runs.values()), path, columns=8, names=list(runs))
            except RunError as error:  # the tables do not need the images
                runtime.log.error("%s: no contact sheet (%s)", path, error)
