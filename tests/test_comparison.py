"""The grid on tiny real models: which cells run, which are reused, how failures appear, what is written."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from erase_sd import api
from erase_sd.attacks.settings import AttackSettings
from erase_sd.checked import hash_folder
from erase_sd.cli import main
from erase_sd.comparison import cell as cell_module
from erase_sd.comparison import own_process, runner
from erase_sd.comparison.cell import GridSetup, attempt, is_done
from erase_sd.comparison.grid import Cell, MethodSpec, cells_of, parse_spec
from erase_sd.comparison.results import measures_of
from erase_sd.comparison.rows import COLUMNS
from erase_sd.comparison.runner import Comparison, compare
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.pair import PromptKind
from erase_sd.errors import DataError, ModelError, SettingError
from erase_sd.files import write_json
from erase_sd.generation.settings import GenerateSettings
from erase_sd.models.presets import Models, resolve
from erase_sd.run import Run
from erase_sd.run.measurements import Change, Rate, RateComparison, RateGroup, ScoresRecord
from erase_sd.run.records import EncoderResult, Origin, ScoreRecord, Stages, UnlearnRecord
from erase_sd.unlearning.stage import origin, unlearn

OUT = Path("comparison")


def sources(tiny: Models) -> dict[str, Any]:
    return {"model": tiny.model, "clip": tiny.clips[0], "data": tiny.data}


def models_of(tiny: Models) -> Models:
    return resolve(**sources(tiny), detector=tiny.detector)


def write_prompts(*concepts: str) -> Path:
    """A folder with two prompts for each concept, and a `retain.txt`."""
    folder = Path("prompts")
    folder.mkdir()
    for word in concepts:
        (folder / f"{word}.txt").write_text(f"a dog and a {word}\na {word} in a park\n")
    (folder / "retain.txt").write_text("a cow\n")
    return folder


def setup_of(tiny: Models, images: bool = True) -> GridSetup:
    models = models_of(tiny)
    return GridSetup(
        models=models,
        origin=origin(models, read_flickr30k(models.pairs())),
        prompts={word: Path("prompts", f"{word}.txt") for word in ("apple", "chair")},
        generation=GenerateSettings(),
        images=images,
    )


def run_grid(tiny: Models, concepts: list[str], methods: list[str], **options: Any) -> Comparison:
    defaults: dict[str, Any] = {
        "seeds": 1, "out": OUT, "prompts_folder": Path("prompts"), "images": False,
        "images_per_prompt": 1, "dtype": "auto",
    }  # fmt: skip
    return compare(concepts, methods, **{"models": models_of(tiny)} | defaults | options)


def read_text(name: str) -> str:
    return (OUT / name).read_text()


def rows() -> list[dict[str, str]]:
    with (OUT / "comparison.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def test_equal_specs_have_one_spelling() -> None:
    spec = parse_spec("cliperase:towers=both,consistency=embedding,learning_rate=1e-3,steps=20")
    assert spec == parse_spec(
        "cliperase:steps=20,learning_rate=0.001,consistency=embedding,towers=both"
    )
    assert str(spec) == "cliperase:consistency=embedding,learning_rate=0.001,steps=20,towers=both"
    assert spec.settings == {
        "method": "cliperase", "hyperparameters": {"consistency": "embedding"},
        "learning_rate": 0.001, "steps": 20, "towers": "both",
    }  # fmt: skip
    assert str(parse_spec("ga")) == "ga"
    assert parse_spec("ga").settings == {"method": "ga", "hyperparameters": {}}


def test_commas_and_repeated_options_give_the_same_cells() -> None:
    together = cells_of(["apple,bicycle"], ["cliperase:learning_rate=1e-3,steps=2,ga"], 2, OUT)
    methods = ["cliperase:learning_rate=1e-3,steps=2", "ga", "ga"]
    apart = cells_of(["apple", "bicycle"], methods, 2, OUT)
    assert together == apart and len(apart) == 8
    assert [cell.seed for cell in apart] == [0] * 4 + [1] * 4
    folder = "runs/apple/cliperase+learning_rate=0.001+steps=2/seed-0"
    assert apart[0].folder == OUT / folder
    [both] = cells_of(["apple+chair"], ["ga"], 1, OUT)
    assert both.concepts == ("apple", "chair") and both.folder == OUT / "runs/apple+chair/ga/seed-0"


@pytest.mark.parametrize(
    ("concepts", "methods", "seeds", "message"),
    [
        ([" "], ["ga"], 1, "concepts: needs at least one word"),
        (["apple"], ["ga"], 0, "seeds: needs 1 to 1000, got 0"),
        (["apple"], [], 1, "methods: needs at least one of"),
        (["apple"], ["cliperaze"], 1, "methods cliperaze: unknown, similar: cliperase"),
        (["apple"], ["zzz"], 1, "methods zzz: unknown; needs one of cliperase,"),
        (["apple"], ["ga:step=2"], 1, "ga has no setting step, similar: steps"),
        (["apple"], ["ga:steps"], 1, "needs method:name=value,name=value"),
        (["apple"], ["ga:steps=0"], 1, "methods ga:steps=0: steps"),
        (["apple"], ["ga:towers=left"], 1, "methods ga:towers=left: towers"),
        (["apple"], ["cliperase:forget_weight=much"], 1, "forget_weight"),
        (["apple"], ["ga:steps=2.5"], 1, "methods ga:steps=2.5: steps cannot be 2.5"),
        (["apple"], ["ga:learning_rate=fast"], 1, "learning_rate cannot be fast"),
        (["apple+apple"], ["ga"], 1, "concept"),
    ],
)
def test_a_grid_that_cannot_run_is_one_line(
    concepts: list[str], methods: list[str], seeds: int, message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        cells_of(concepts, methods, seeds, OUT)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_prompt_file_is_reported_before_anything_starts(tiny: Models) -> None:
    folder = write_prompts("apple")
    with pytest.raises(DataError, match=r"prompts/chair\.txt: no such file"):
        run_grid(tiny, ["apple", "chair"], ["ga"], images=True)
    (folder / "retain.txt").unlink()
    with pytest.raises(DataError, match=r"prompts/retain\.txt: no such file"):
        run_grid(tiny, ["apple"], ["ga"], images=True)
    assert not OUT.exists()


@pytest.mark.parametrize("name", ["chair", "retain"])
def test_a_prompt_that_is_too_long_is_reported_before_anything_starts(
    tiny: Models, name: str
) -> None:
    folder = write_prompts("apple", "chair")
    (folder / f"{name}.txt").write_text("dog " * 40)
    with pytest.raises(DataError, match=rf"^{name}: 42 tokens, at most 32 fit: 'dog dog"):
        run_grid(tiny, ["apple", "chair"], ["ga"], images=True)
    assert not OUT.exists()


def test_what_images_and_attacks_need_is_known_before_anything_starts(
    tiny: Models, tmp_path: Path
) -> None:
    folder = write_prompts("apple", "zebra")
    with pytest.raises(
        SettingError, match=r"detector_class zebra: .*; name the class that shows the concept"
    ):
        run_grid(tiny, ["apple", "zebra"], ["ga"], images=True)
    with pytest.raises(SettingError, match=r"concept=class, with one of .*: apple, zebra"):
        run_grid(tiny, ["apple", "zebra"], ["ga"], images=True, detector_class=["dog=cow"])
    alone = resolve(clip=tiny.clips[0], data=tiny.data)
    with pytest.raises(SettingError, match="is a CLIP or BLIP alone; needs a Stable Diffusion"):
        run_grid(tiny, ["apple"], ["ga"], images=True, models=alone)
    shutil.copytree(tiny.folder, tmp_path / "flux", ignore=lambda *_: ["unet"])
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    flux = dataclasses.replace(tiny, model=tmp_path / "flux")
    with pytest.raises(ModelError, match="is a FluxPipeline; attacks need a U-Net"):
        run_grid(tiny, ["apple"], ["ga"], images=True, attacks=["p4d"], models=flux)
    (folder / "retain.txt").write_text("a cow " * 40)
    with pytest.raises(DataError, match=r"retain.*tokens"):
        run_grid(tiny, ["apple"], ["ga"], images=True)
    assert not OUT.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--concepts", "apple", "chair", "--methods", "ga", "kl:steps=2", "--seeds", "2"],
        ["--seeds", "2", "--methods", "ga", "--methods", "kl:steps=2", "--concepts", "apple,chair"],
    ],
)
def test_options_take_words_up_to_the_next_option(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def keep(concepts: list[str], methods: list[str], **more: Any) -> Comparison:
        seen.append(cells_of(concepts, methods, more["seeds"], OUT))
        return Comparison(OUT, [], [])

    monkeypatch.setattr(api, "compare", keep)
    monkeypatch.setattr(sys, "argv", ["erase-sd", "compare", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert seen == [cells_of(["apple", "chair"], ["ga", "kl:steps=2"], 2, OUT)]


def test_words_after_other_options_are_usage_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["compare", "--concepts", "apple", "--methods", "ga", "--seeds", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["erase-sd", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2


def diverging(cell: Cell, setup: GridSetup) -> str:
    return "training diverged" if "forget_weight" in str(cell) else attempt(cell, setup)


def test_a_grid_writes_rows_and_tables_survives_a_failure_and_reuses_finished_cells(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(own_process, "attempt", diverging)
    methods = ["ga:steps=2", "ga:forget_weight=2,steps=2"]
    comparison = run_grid(tiny, ["apple", "chair"], methods)
    assert [str(cell) for cell, _ in comparison.failed] == [
        "apple ga:forget_weight=2,steps=2 seed 0", "chair ga:forget_weight=2,steps=2 seed 0",
    ]  # fmt: skip
    assert all("diverged" in reason for _, reason in comparison.failed)
    table = rows()
    done = {(r["concept"], r["overrides"]) for r in table if r["measure"] == "unlearn_seconds"}
    assert done == {("apple", "steps=2"), ("chair", "steps=2")}
    failed = [row for row in table if row["measure"] == "failed"]
    assert len(failed) == 2 and all("diverged" in row["reason"] for row in failed)
    assert {row["measure"] for row in table} >= {
        "peak_memory_mb", "steps", "residual_concept_similarity", "zero_shot_prediction", "image_retrieval_r1",
    }  # fmt: skip
    text = (OUT / "comparison.md").read_text()
    assert "Zero-shot prediction" in text and "Image retrieval" in text and "## Failed" in text
    assert (OUT / "pareto.png").is_file() and not (OUT / "several.png").exists()

    ran: list[str] = []
    monkeypatch.setattr(runner, "in_own_process", lambda cell, *_: ran.append(str(cell)) or "")
    run_grid(tiny, ["apple", "chair"], methods)
    assert ran == [str(cell) for cell, _ in comparison.failed]


def test_a_cell_that_another_comparison_runs_again_meanwhile_is_not_in_the_tables(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two comparisons with the same --out and other settings: each used to tabulate the other's runs."""
    prompts = write_prompts("apple")

    def then_other(cell: Cell, setup: GridSetup) -> str:
        reason = attempt(cell, setup)
        four = dataclasses.replace(setup.generation, images_per_prompt=4)
        return reason or attempt(cell, dataclasses.replace(setup, generation=four))

    monkeypatch.setattr(runner, "in_own_process", then_other)
    options = {"prompts_folder": prompts, "images": True}
    [(_, reason)] = run_grid(tiny, ["apple"], ["ga:steps=2"], **options).failed
    assert reason.startswith("run again with other settings by another process")
    assert {row["measure"] for row in rows()} == {"failed"}


def test_the_contact_sheet_of_an_earlier_comparison_is_removed_if_all_cells_fail(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"prompts_folder": write_prompts("apple"), "images": True}
    monkeypatch.setattr(runner, "in_own_process", attempt)
    assert not run_grid(tiny, ["apple"], ["ga:steps=2"], **options).failed
    assert (OUT / "apple.png").is_file()
    monkeypatch.setattr(runner, "in_own_process", lambda *_: "failed")
    run_grid(tiny, ["apple"], ["kl:steps=2"], **options)
    assert not (OUT / "apple.png").exists()


def test_contact_sheets_are_files_in_the_folder_whatever_the_concepts_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(runner, "contact_sheet", lambda _, path, **__: paths.append(path))
    many = "+".join(f"concept {number}" for number in range(40))
    runner._write_sheets(cells_of(["black/white", many], ["ga"], 1, OUT), {}, OUT)
    assert len(paths) == 2 and {path.parent for path in paths} == {OUT}
    assert all(len(path.name) < 255 for path in paths)


def killed(*_: object) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_a_killed_cell_is_a_row_and_exit_status_1(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(own_process, "attempt", killed)
    words = ["--concepts", "apple", "--methods", "ga", "--seeds", "1", "--skip-images"]
    words += ["--prompts-folder", "none"]  # nothing is generated, so nothing is read
    for name in ("model", "clip", "data"):
        words += [f"--{name}", str(sources(tiny)[name])]
    monkeypatch.setattr(sys, "argv", ["erase-sd", "compare", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    line = "erase-sd: apple ga seed 0: the child process was killed (out of memory?)\n"
    assert capsys.readouterr().err == line
    [row] = rows()
    assert row["measure"] == "failed" and "killed" in row["reason"]


def test_a_bug_in_one_method_is_a_reason_with_file_and_line(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise ZeroDivisionError("empty\nmean")

    monkeypatch.setattr(cell_module, "unlearn", broken)
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    reason = attempt(cell, setup_of(tiny))
    assert reason.startswith("ZeroDivisionError: empty mean (test_comparison.py:")


def test_a_cell_with_images_has_detection_rates_and_is_done_until_its_settings_change(
    tiny: Models,
) -> None:
    folder = write_prompts("apple", "chair")
    [cell] = cells_of(["apple+chair"], ["ga:steps=2"], 1, OUT)
    assert not is_done(cell, setup_of(tiny))
    assert attempt(cell, setup_of(tiny)) == ""
    assert is_done(cell, setup_of(tiny)) and is_done(cell, setup_of(tiny, images=False))
    attacked = dataclasses.replace(setup_of(tiny), attacks=AttackSettings(attacks=("p4d",)))
    assert not is_done(cell, attacked)
    measured = {(row.measure, row.group, row.variant): row for row in measures_of(cell)}
    assert measured["detection_rate", "target", "erased"].n == 4  # two prompts of each concept
    assert measured["detection_rate", "retained_same", "original"].n == 2  # a dog beside each
    assert measured["detection_rate", "retained_other", "original"].n == 1  # the cow, once
    assert {row.concept for row in measured.values()} == {"apple+chair"}
    assert not run_grid(tiny, ["apple+chair"], ["ga:steps=2"], images=True).failed
    [command] = [line for line in read_text("comparison.md").splitlines() if "erase-sd" in line]
    names = {name: Path(str(getattr(tiny, name))).name for name in ("model", "data", "detector")}
    assert command == (
        "    erase-sd compare --concepts apple+chair --methods ga:steps=2 --seeds 1 "
        f"--model {names['model']} --data {names['data']} --detector {names['detector']} "
        f"--clip {Path(tiny.clips[0]).name} --images-per-prompt 1 --dtype auto "
        "--prompts-folder prompts"
    )
    with Image.open(OUT / "apple+chair.png") as sheet:  # the original's row and one of images below
        assert sheet.height == 2 * (32 + 2) + 8 and sheet.width > 4 * (32 + 2)
    record = json.loads((cell.folder / "run.json").read_text())
    for stage, change in (
        ("generate", {"seed": 7}), ("generate", {"guidance": 3.0}),
        ("score", {"classes": {"apple": "dog", "chair": "chair"}}),
    ):  # fmt: skip
        other = json.loads(json.dumps(record))
        other["stages"][stage]["settings"] |= change
        write_json(cell.folder / "run.json", other)
        assert not is_done(cell, setup_of(tiny)), change
    write_json(cell.folder / "run.json", record)
    assert is_done(cell, setup_of(tiny))
    scores = (cell.folder / "scores.json").read_text()
    other = json.loads(scores)
    other["detectors"][0]["text_encoder_sha256"] = "0"
    write_json(cell.folder / "scores.json", other)
    assert not is_done(cell, setup_of(tiny))
    (cell.folder / "scores.json").write_text(scores)
    as_couch = {"images": True, "detector_class": ["chair=couch"]}
    assert not run_grid(tiny, ["apple+chair"], ["ga:steps=2"], **as_couch).failed
    assert Run(cell.folder).scored().classes == {"apple": "apple", "chair": "couch"}
    assert " --detector-class chair=couch " in read_text("comparison.md")
    assert not is_done(cell, setup_of(tiny))
    assert not run_grid(tiny, ["apple+chair"], ["ga:steps=2"], images=True).failed
    assert is_done(cell, setup_of(tiny))
    (folder / "apple.txt").write_text("an apple\n")
    assert not is_done(cell, setup_of(tiny)) and is_done(cell, setup_of(tiny, images=False))


def test_a_run_with_other_settings_or_without_its_evaluation_is_not_done(tiny: Models) -> None:
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    assert attempt(cell, setup_of(tiny, images=False)) == ""
    other = Cell(cell.concepts, MethodSpec("ga", (("steps", 3),)), 0, cell.folder)
    assert not is_done(other, setup_of(tiny, images=False))
    assert "began with steps 2, now it is 3" in attempt(other, setup_of(tiny, images=False))
    (cell.folder / "evaluation.json").unlink()
    assert not is_done(cell, setup_of(tiny, images=False))


@pytest.mark.parametrize("part", ["sd", "clip"])
def test_a_run_whose_fingerprints_are_of_all_files_is_done(
    tiny: Models, part: str, tmp_path: Path
) -> None:
    """Earlier versions recorded those."""
    for name, folder in (("sd", tiny.folder), ("clip", tiny.clip_folder(0))):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / part / "other.safetensors").write_text("{}")
    models = dataclasses.replace(tiny, model=tmp_path / "sd", clips=(tmp_path / "clip",))
    here = setup_of(models, images=False)
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    assert attempt(cell, here) == "" and is_done(cell, here)
    of_all = hash_folder(tmp_path / part, "*.safetensors", "*.json")
    own = here.origin.model if part == "sd" else here.origin.clip[0]
    for name in ("run.json", "evaluation.json", "erased/erase.json"):
        path = cell.folder / name
        path.write_text(path.read_text().replace(own, of_all))
    assert of_all != own and is_done(cell, here)
    (cell.folder / "evaluation.json").unlink()
    assert attempt(cell, here) == "" and is_done(cell, here)


def test_a_run_that_was_trained_or_evaluated_on_something_else_is_not_done(tiny: Models) -> None:
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    here, path = setup_of(tiny, images=False), cell.folder / "evaluation.json"
    assert attempt(cell, here) == "" and is_done(cell, here)
    changes: list[dict[str, Any]] = [{"clip": ("other",)}, {"data": "other"}, {"model": "other"}]
    for change in changes:
        other = dataclasses.replace(here, origin=dataclasses.replace(here.origin, **change))
        assert not is_done(cell, other)
    unknown_data = dataclasses.replace(here.origin, data=None, images=None, missing_images=0)
    assert is_done(cell, dataclasses.replace(here, origin=unknown_data))
    own = path.read_text()
    for place, key in (("about", "clip_digest"), ("data", "kind")):
        record = json.loads(own)
        (record["about"] if place == "about" else record["about"]["data"])[key] = "another"
        path.write_text(json.dumps(record))
        assert not is_done(cell, here)
    assert attempt(cell, here) == "" and is_done(cell, here)
    assert json.loads(path.read_text())["measurements"] == json.loads(own)["measurements"]


def test_a_failed_cell_has_a_reason_only_and_no_cell_has_rates_without_images() -> None:
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    write_scores(cell, comparison("target", 1, 4))
    assert [row.value for row in measures_of(cell)] == [0.5, 0.25]
    assert measures_of(cell, images=False) == []
    [row] = measures_of(cell, reason="no luck")
    assert (row.measure, row.reason, row.value) == ("failed", "no luck", None)


def test_a_run_whose_validation_steps_were_all_rolled_back_is_the_original(tiny: Models) -> None:
    [cell] = cells_of(["apple"], ["ga:steps=2"], 1, OUT)
    settings = dataclasses.replace(cell.settings(), retain_floor=1.0)
    unlearn(settings, models_of(tiny), Run(cell.folder))
    measured = {row.measure: row.value for row in measures_of(cell)}
    assert (measured["residual_concept_similarity"], measured["retained_fidelity"]) == (1.0, 1.0)


def test_the_time_of_a_resumed_run_is_unknown() -> None:
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    for resumed_at, seconds in ((0, 3.0), (10, None)):
        result = EncoderResult(
            steps=20, stopped="steps", resumed_at=resumed_at, batch_sizes=(2, 2), held_out={}
        )
        record = UnlearnRecord(
            status="done", settings={}, seconds=3.0, peak_memory_mb=9, concepts=(Concept("apple"),),
            origin=Origin(model="", clip=(), data=""), encoders={"text_encoder": result},
        )  # fmt: skip
        write_run(cell, Stages(unlearn=record))
        assert measures_of(cell)[0].value == seconds


def test_bad_image_settings_are_reported_before_anything_starts(tiny: Models) -> None:
    write_prompts("apple")
    with pytest.raises(SettingError, match="images_per_prompt: needs 1 to 10,000, got 0"):
        run_grid(tiny, ["apple"], ["ga"], images=True, images_per_prompt=0)
    assert not OUT.exists()


def test_attacks_without_images_are_not_left_out_without_a_word(tiny: Models) -> None:
    with pytest.raises(SettingError, match="attacks p4d sweep: attacks need images"):
        run_grid(tiny, ["apple"], ["ga"], attacks=["p4d", "sweep"])
    assert not OUT.exists()


def write_run(cell: Cell, stages: Stages) -> None:
    Run(cell.folder).update(stages=stages)


def comparison(
    group: RateGroup, detected: int, n: int, kind: PromptKind = "plain"
) -> RateComparison:
    """Detected in half of the original's images, and in `detected` of the erased model's `n`."""
    before, after = (
        Rate(value=hits / n, n=n, detected=hits, low=0, high=1) for hits in (n // 2, detected)
    )
    return RateComparison(
        run="", concept="apple", group=group, kind=kind, class_name=None, threshold=0.25,
        original=before, erased=after, change=Change(difference=0, p_value=1),
        reference=before, reference_change=Change(difference=0, p_value=1),
    )  # fmt: skip


def write_scores(cell: Cell, *rates: RateComparison) -> None:
    """A run that holds nothing but these rates."""
    write_run(cell, Stages(score=ScoreRecord(status="done", settings={})))
    record = ScoresRecord(threshold=0.25, detectors=(), rates=rates, by_class=(), sweep=())
    write_json(cell.folder / "scores.json", dataclasses.asdict(record))


def test_rates_of_several_concepts_are_pooled_without_other_variants_and_kinds() -> None:
    [cell] = cells_of(["apple+chair"], ["ga"], 1, OUT)
    write_scores(
        cell,
        comparison("target", 3, 10), comparison("retained_same", 8, 10),
        comparison("retained_other", 7, 10), comparison("target", 9, 9, "synonym"),
        comparison("target", 5, 30), comparison("retained_same", 6, 10),
        comparison("retained_other", 7, 10),
    )  # fmt: skip
    assert [(row.group, row.variant, row.value, row.n) for row in measures_of(cell)] == [
        ("target", "original", 0.5, 40), ("target", "erased", 0.2, 40),
        ("retained_same", "original", 0.5, 20), ("retained_same", "erased", 0.7, 20),
        ("retained_other", "original", 0.5, 10), ("retained_other", "erased", 0.7, 10),
    ]  # fmt: skip


def test_a_damaged_run_folder_is_a_row_with_its_reason() -> None:
    [cell] = cells_of(["apple"], ["ga"], 1, OUT)
    cell.folder.mkdir(parents=True)
    (cell.folder / "run.json").write_text("{")
    [row] = measures_of(cell)
    assert row.measure == "failed" and "damaged" in row.reason


@pytest.mark.slow
def test_two_processes_share_the_cells_and_write_the_same_as_one(tiny: Models) -> None:
    words = [
        "compare", "--concepts", "apple", "chair", "--methods", "ga:steps=2", "kl:steps=2",
        "--seeds", "1", "--skip-images",
    ]  # fmt: skip
    for name in ("model", "clip", "data"):
        words += [f"--{name}", str(sources(tiny)[name])]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "erase_sd"]
    answer = subprocess.run(
        [sys.executable, *launch, *words], capture_output=True, text=True, check=False,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "240"},  # the bar needs a terminal
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "waiting for the other processes" in answer.stderr  # only with several processes
    assert answer.stdout.count("Zero-shot prediction") == 1  # only the main process prints
    shared_out = [row for row in rows() if row["measure"].startswith(("zero", "image", "text"))]
    shutil.move(OUT, "by-two")
    assert not run_grid(tiny, ["apple", "chair"], ["ga:steps=2", "kl:steps=2"]).failed
    alone = [row for row in rows() if row["measure"].startswith(("zero", "image", "text"))]
    assert alone == shared_out and len({row["concept"] for row in alone}) == 2
