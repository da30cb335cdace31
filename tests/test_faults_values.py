"""Records that are valid JSON of the right shape, with one value in them changed: one line, or a result."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Faults
from report_run import scored_run
from test_ladder import attack_record

from erase_sd.attacks.settings import AttackSettings
from erase_sd.attacks.stage import attack
from erase_sd.attacks.table import attacks_markdown
from erase_sd.comparison.cell import GridSetup, is_done
from erase_sd.comparison.grid import Cell, MethodSpec
from erase_sd.comparison.results import measures_of
from erase_sd.errors import EraseError
from erase_sd.files import hash_file, write_json
from erase_sd.generation.settings import GenerateSettings
from erase_sd.models import erased
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.models.recorded import models_of_run
from erase_sd.report import write
from erase_sd.report.contact_sheet import contact_sheet
from erase_sd.report.ladder_pictures import ladder_section
from erase_sd.report.play.player import Player
from erase_sd.run import Run
from erase_sd.run.measurements import AttackImage, AttacksRecord
from erase_sd.unlearning.stage import check_erased

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]
OTHERS: tuple[Any, ...] = (
    None,
    "",
    "../x\0y",
    -1,
    0,
    10**30,
    1e308,
    [],
    {},
    [1],
    {"a": {"b": []}},
    True,
)
FILES = (
    "run.json", "images.jsonl", "detections.jsonl", "scores.json", "erased/erase.json",
    "evaluation.json", "train.jsonl", "attacks.json",
)  # fmt: skip
MISSING = object()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in parsed JSON; of a list its first item alone."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


@pytest.fixture(scope="module")
def finished(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A scored run with an `evaluation.json` and an `attacks.json`."""
    run = scored_run(tiny, tmp_path_factory.mktemp("values"))
    about = {"data": {"kind": "x", "folder": "x", "forget": 1, "retain": 1}, "templates": ["a {}"],
             "erased_sha256": run.erasure().weights_sha256}  # fmt: skip
    measured = {"run": "apple", "concept": "apple", "measure": "drift", "set": "forget", "value": 0.5,
           "variant": "erased", "n": 3, "low": 0.1, "high": 0.9}  # fmt: skip
    text = json.dumps({"about": about, "measurements": [measured]})
    (run.folder / "evaluation.json").write_text(text)
    images = [AttackImage(file=image.file, sha256=image.sha256, text="an apple", seed=1, probability=0.5)
              for image in run.images()[:2]]  # fmt: skip
    row = dataclasses.replace(
        attack_record("p4d", 1), images=tuple(images), original_images=tuple(images), found=("x",),
        settings={"images": 10, "seed": 7, "budgets": {"steps": [1]}},
    )  # fmt: skip
    attacks = AttacksRecord(
        threshold=0.25, detector="d", detector_sha256=tiny.detector_hash(),
        erased_sha256=run.erasure().weights_sha256, rows=(row,),
    )  # fmt: skip
    write_json(run.folder / "attacks.json", dataclasses.asdict(attacks))
    return run


def readers(run: Run, tiny: Models) -> dict[str, Callable[[], object]]:
    """What rests on a run's records, as far as it is quick."""
    from erase_sd.evaluation.stage import evaluation_lines, evaluation_note
    from erase_sd.scoring.stage import score

    def evaluated() -> None:
        if record := run.evaluation():
            evaluation_lines(record)
            evaluation_note(record)

    def attacked() -> None:
        if record := run.attacks():
            attacks_markdown(run.name, record)

    cell = Cell(("apple",), MethodSpec("cliperase-anchored"), 0, run.folder)
    prompts = {"apple": Path("prompts/apple.txt")}
    setup = GridSetup(
        models=tiny, origin=run.unlearned().origin, prompts=prompts, images=True,
        generation=GenerateSettings(), attacks=AttackSettings(attacks=("p4d",)),
    ) if _readable(run) else None  # fmt: skip
    return {
        "weights": lambda: erased.check(run.erased),
        "models": lambda: models_of_run(run),
        "erasure": lambda: check_erased(run, 0.5),
        "report": lambda: write(run),
        "sheet": lambda: contact_sheet([run], Path("sheet.png")),
        "export": lambda: export(run, tiny, "comfyui"),
        "card": lambda: export(run, tiny, "hub-folder", pictures=ladder_section),
        "attacks": attacked,
        "score": lambda: score(run, tiny),
        "measures": lambda: measures_of(cell),
        "evaluation": evaluated,
        "done": lambda: setup and is_done(cell, setup),
        "player": lambda: Player(run, tiny),
        "attack": lambda: attack(run, tiny, AttackSettings(attacks=("embeddings",), images=10_000)),
    }


def _readable(run: Run) -> bool:
    try:
        run.unlearned()
    except EraseError:
        return False
    return True


@pytest.mark.parametrize("name", FILES)
def test_any_value_of_any_record_may_be_wrong(
    finished: Run, tiny: Models, name: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    from report_run import known_answers

    from erase_sd.attacks import stage as attacks
    from erase_sd.models import pipeline

    monkeypatch.setattr("erase_sd.scoring.detections.detect", known_answers)
    monkeypatch.setattr(pipeline, "open_pipeline", _never)
    monkeypatch.setattr(attacks, "open_models", _never)
    Path("prompts").mkdir()
    for stem in ("apple", "retain"):
        Path(f"prompts/{stem}.txt").write_text("an apple\n")
    text = (finished.folder / name).read_text()
    rows = text.splitlines() if name.endswith("l") else [text]
    first = json.loads(rows[0])
    for number, path in enumerate(places(first)):
        with faults("values of the wrong kind", f"{name}: {'.'.join(map(str, path))}"):
            for other in (
                MISSING,
                OTHERS[number % len(OTHERS)],
                OTHERS[(3 * number + 1) % len(OTHERS)],
            ):
                folder = Path("runs/apple")
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(finished.folder, folder)
                rest = rows[1:]
                (folder / name).write_text(
                    "\n".join([json.dumps(changed(first, path, other)), *rest])
                )
                if name == "erased/erase.json":
                    assert hash_file(folder / name)
                for what, reader in readers(Run(folder), tiny).items():
                    _one_line(what, reader, other)


def _never(*_: object, **__: object) -> object:
    raise EraseError("models are not opened here")


def _one_line(what: str, reader: Callable[[], object], other: object) -> None:
    try:
        reader()
    except EraseError as error:
        assert len(str(error).splitlines()) == 1
    except Exception as error:
        raise AssertionError(f"{what} with {other!r}: {error!r}") from error
