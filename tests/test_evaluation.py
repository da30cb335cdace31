"""The evaluation of a run, on tiny models of the real classes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_model import make_blip
from labelled_data import (
    APPLE,
    PEPPER,
    samples,
    write_cifar_binary,
    write_cifar_python,
    write_class_folders,
    write_shard,
)
from safetensors.torch import load_file, save_file
from test_models import sd2, sdxl  # noqa: F401  (fixtures)
from typer.testing import CliRunner

import erase_sd
from erase_sd import runtime
from erase_sd.cli import app
from erase_sd.data import grammar
from erase_sd.data.classes import prompt_of
from erase_sd.data.concept import Concept
from erase_sd.data.dataset import CaptionedImage, Dataset
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.pair import CONCEPT_SETS
from erase_sd.data.split import split_by_concept
from erase_sd.errors import DataError, ModelError, RunError, SettingError
from erase_sd.evaluation import stage
from erase_sd.evaluation.clip_measures import MEASURES
from erase_sd.evaluation.stage import evaluate, evaluation_lines, evaluation_note
from erase_sd.files import hash_file, write_json
from erase_sd.models.clip import Clip
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.run.measurements import EvaluationRecord, Measurement
from erase_sd.run.records import Variant
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

APPLES = (Concept("apple"),)
DRIFT = [name for name in MEASURES if name.startswith("drift")]


def settings(**changes: Any) -> UnlearnSettings:
    fields: dict[str, Any] = {
        "concepts": APPLES, "steps": 4, "validate_every": 2, "forget_batch": 8, "retain_batch": 8,
        "learning_rate": 1e-2, "retain_floor": 0.0,
    }  # fmt: skip
    return UnlearnSettings(**(fields | changes))


@pytest.fixture(scope="module")
def unlearned(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unlearned run, and the cache that it filled."""
    folder = tmp_path_factory.mktemp("unlearned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        unlearn(settings(), tiny, Run(folder / "runs/apple"))
    return folder


@pytest.fixture
def run(unlearned: Path) -> Run:
    """A copy of the unlearned run."""
    shutil.copytree(unlearned, Path(), dirs_exist_ok=True)
    return Run(Path("runs/apple"))


@pytest.fixture
def chair(tiny: Models) -> Run:
    """A run in which some held-out captions name a chair and no other class."""
    chair = Run(Path("runs/chair"))
    unlearn(settings(concepts=(Concept("chair"),), seed=2), tiny, chair)
    return chair


def table(record: EvaluationRecord) -> dict[tuple[str, str, str], Measurement]:
    return {(row.measure, row.set, row.variant): row for row in record.measurements}


def held_out(models: Models) -> tuple[Dataset, list[CaptionedImage], list[CaptionedImage]]:
    """The data, and the held-out images of the forget and the retain set of apple."""
    data = read_flickr30k(models.pairs())
    sets = split_by_concept(data.items, APPLES)
    return data, *(list(sets.images(name, "held-out")) for name in CONCEPT_SETS)


def test_every_measure_covers_both_sets_and_variants_and_is_written(
    tiny: Models, chair: Run
) -> None:
    record = evaluate(chair, tiny)
    rows = table(record)
    assert len(rows) == len(record.measurements)
    for measure in MEASURES:
        for name in CONCEPT_SETS:
            variants = [v for v in ("original", "erased") if (measure, name, v) in rows]
            if measure == "drift_subject" and name == "retain":
                assert variants == []  # retain captions do not mention the concept
            else:
                assert variants == (["erased"] if measure in DRIFT else ["original", "erased"])
    for row in record.measurements:
        assert (row.run, row.concept) == ("chair", "chair")
        assert 0 <= row.value <= (2 if row.measure in DRIFT else 1) and row.n > 0
        assert row.low is None or row.low <= row.value + 1e-9 <= row.high + 2e-9  # type: ignore[operator]
    assert chair.evaluation() == record
    text = (chair.folder / "evaluation.csv").read_text()
    lines = [
        (line["measure"], line["set"], line["variant"], float(line["value"]))
        for line in csv.DictReader(text.splitlines())
    ]
    assert lines == [(r.measure, r.set, r.variant, r.value) for r in record.measurements]


def test_gallery_is_the_held_out_split_of_the_run(tiny: Models) -> None:
    seeded = Run(Path("runs/seeded"))
    unlearn(settings(seed=3), tiny, seeded)
    record = evaluate(seeded, tiny)
    _, forget, retain = held_out(tiny)
    about = record.about["data"]
    assert (about["forget"], about["retain"]) == (len(forget), len(retain))
    rows = table(record)
    captions = {caption for image in forget for caption in image.captions}
    assert rows["image_retrieval_r1", "forget", "original"].n == len(captions)
    assert rows["text_retrieval_r1", "forget", "original"].n == len(forget)
    assert rows["drift_subject", "forget", "erased"].n == sum("apple" in c for c in captions)


def test_retrieval_equals_a_count_over_clips_own_features(tiny: Models, run: Run) -> None:
    rows = table(evaluate(run, tiny))
    clip = load_clip(tiny.clips[0], text_encoders(tiny.folder)[0])
    clip.model.to(runtime.device())
    data, forget, retain = held_out(tiny)
    items = [*forget, *retain]
    with torch.no_grad():
        images = clip.encode_image(clip.pixels([data.path_of(item.image) for item in items]))
    hits = []
    for caption in {c for item in forget for c in item.captions}:
        scores = (clip.encode_texts(clip.tokens([caption]))[0] @ images.T)[0]
        first = sorted(range(len(items)), key=lambda i: -float(scores[i]))[:5]
        hits.append(any(caption in items[i].captions for i in first))
    assert rows["image_retrieval_r5", "forget", "original"].value == sum(hits) / len(hits)


def test_unchanged_encoder_has_the_same_measures_and_no_drift(
    tiny: Models,
) -> None:
    same = Run(Path("runs/same"))
    unlearn(settings(retain_floor=1.0), tiny, same)  # every step is rolled back
    rows = table(evaluate(same, tiny))
    for (measure, name, variant), row in rows.items():
        if variant == "erased":
            if measure in DRIFT:
                assert row.value == pytest.approx(0, abs=1e-6)
            else:
                assert row.value == rows[measure, name, "original"].value


def test_image_features_of_the_original_are_cached(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run, tiny)
    monkeypatch.setattr(Clip, "encode_image", lambda *_, **__: pytest.fail("computed again"))
    assert evaluate(run, tiny).measurements == first.measurements


def test_synthetic_pairs_are_measured_too(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grammar, "FORGET_SCENES", 12)
    monkeypatch.setattr(grammar, "RETAIN_SCENES", 16)
    folder = erase_sd.unlearn(
        "lighthouse", data="synth", model=tiny.model, clip=tiny.clips, steps=2, validate_every=2,
        retain_floor=0.0, max_residual=9.0,
    )  # fmt: skip
    record = erase_sd.evaluate(folder)  # models and data are those in run.json
    assert "the zero-shot measures are left out" in caplog.text  # not a COCO class
    rows = table(record)
    assert rows["text_retrieval_r1", "forget", "erased"].n == 2  # a fifth of 12
    assert rows["drift_subject", "forget", "erased"].value > 0


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_first_encoder_of_other_stable_diffusions_is_measured(
    kind: str, request: pytest.FixtureRequest
) -> None:
    models = request.getfixturevalue(kind)
    run = Run(Path("runs/a"))
    unlearn(settings(), models, run)
    record = evaluate(run, models)
    assert record.about["encoder"] == "text_encoder"
    assert table(record)["drift_end", "forget", "erased"].value > 0


def test_trained_image_tower_belongs_to_the_erased_variant(tiny: Models) -> None:
    both = Run(Path("runs/both"))
    unlearn(settings(towers="both", method="cliperase"), tiny, both)
    record = evaluate(both, tiny)
    assert record.about["image_tower_erased"]
    (tower,) = both.erased.glob("image_tower/*.safetensors")
    # An image tower of zeros gives all images the same feature, so it retrieves nothing.
    save_file({name: torch.zeros_like(t) for name, t in load_file(tower).items()}, tower)
    erasure = dataclasses.replace(
        both.erasure(), image_tower_sha256={"text_encoder": hash_file(tower)}
    )
    write_json(both.erased / "erase.json", dataclasses.asdict(erasure))
    blind = table(evaluate(both, tiny))
    assert blind["text_retrieval_r1", "retain", "erased"].value == 0
    before = table(record)
    for key, row in blind.items():
        if key[2] == "original":
            assert row == before[key]
    tower.write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"image_tower/model\.safetensors: damaged"):
        evaluate(both, tiny)


def test_labelled_images_give_zero_shot_measures_and_the_drift_of_their_prompts(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    write_cifar_binary(tmp_path / "cifar", [APPLE, 0, PEPPER, APPLE, 5])
    record = evaluate(run, tiny, tmp_path / "cifar", ["a photo of a {}", "one {}"])
    rows = table(record)
    assert {measure for measure, _, _ in rows} == {
        "zero_shot_prediction", "zero_shot_retrieval", *DRIFT,
    }  # fmt: skip
    assert rows["zero_shot_prediction", "forget", "original"].n == 2
    assert rows["zero_shot_prediction", "retain", "erased"].n == 3
    one = rows["zero_shot_retrieval", "forget", "erased"]
    assert (one.n, one.low, one.high) == (1, None, None)  # one class has no interval
    assert rows["zero_shot_retrieval", "retain", "erased"].n == 3
    assert rows["drift_subject", "forget", "erased"].n == 2  # prompts of the class
    assert rows["drift_words", "retain", "erased"].n == 6
    assert record.about["templates"] == ["a photo of a {}", "one {}"]
    assert record.about["data"]["kind"] == "CIFAR-100, test"


def test_cifar_100_is_the_run_s_own_wherever_its_folder_is_named(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, [APPLE, 0])
    own, inside = tmp_path, tmp_path / "cifar-100-python"
    assert stage._is_same(inside, own) and stage._is_same(own, inside)
    assert not stage._is_same(own, own / "another") and not stage._is_same(own, None)


def test_no_copy_of_cifar_100_measures_test_images_that_a_run_has_trained_on(
    tmp_path: Path,
) -> None:
    write_cifar_python(tmp_path / "own", [APPLE, 0])
    write_cifar_binary(tmp_path / "copy", [APPLE, 0])
    assert stage._is_same(tmp_path / "copy", tmp_path / "own")
    (tmp_path / "own" / "cifar-100-python" / "test").rename(
        tmp_path / "own" / "cifar-100-python" / "train"
    )  # the run has only seen the training images
    assert not stage._is_same(tmp_path / "copy", tmp_path / "own")


def test_zero_shot_prediction_is_clips_nearest_prompt(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    write_class_folders(tmp_path / "classes", {"apple": 6, "dog": 6, "red_car": 6})
    rows = table(evaluate(run, tiny, tmp_path / "classes", ["a {}"]))
    clip = load_clip(tiny.clips[0], text_encoders(tiny.folder)[0])
    clip.model.to(runtime.device())
    paths = sorted((tmp_path / "classes").glob("*/*.jpg"))
    with torch.no_grad():
        images = clip.encode_image(clip.pixels(paths))
        prompts, _ = clip.encode_text(clip.tokens(["an apple", "a dog", "a red car"]))
    hits = [
        ["apple", "dog", "red_car"][int(scores.argmax())] == path.parent.name
        for path, scores in zip(paths, images @ prompts.T, strict=True)
    ]
    assert rows["zero_shot_prediction", "forget", "original"].value == sum(hits[:6]) / 6
    assert rows["zero_shot_prediction", "retain", "original"].value == sum(hits[6:]) / 12


def test_captioned_shards_give_every_measure(tiny: Models, run: Run, tmp_path: Path) -> None:
    captions = ["an apple", "a red apple in the snow", "a dog", "a cat", "a dog and a man", "snow"]
    write_shard(tmp_path / "cc" / "00000.tar", samples(captions))
    rows = table(evaluate(run, tiny, tmp_path / "cc"))
    assert {measure for measure, _, _ in rows} == set(MEASURES)
    assert rows["zero_shot_prediction", "retain", "original"].n == 2  # a dog, a cat
    assert rows["text_retrieval_r1", "retain", "original"].n == 4
    assert rows["image_retrieval_r10", "forget", "erased"].value == 1  # of only six images


@pytest.mark.parametrize(
    "captions", [["an apple and a dog", "a dog", "a cat"], ["an apple", "a dog and a cat"]]
)
def test_zero_shot_is_left_out_with_a_warning_without_a_class_in_both_sets(
    tiny: Models, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, captions: list[str]
) -> None:
    write_shard(tmp_path / "0.tar", samples(captions))
    measured = {row.measure for row in evaluate(run, tiny, tmp_path).measurements}
    assert not any(name.startswith("zero_shot") for name in measured)
    assert "image_retrieval_r1" in measured and "drift_end" in measured
    assert caplog.text.count("the zero-shot measures are left out") == 1


def test_captions_beyond_the_context_length_are_left_out_and_counted(
    tiny: Models, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "0.tar", samples(["an apple", "apple " * 60, "a dog", "a cat"]))
    rows = table(evaluate(run, tiny, tmp_path))
    assert rows["text_retrieval_r1", "forget", "original"].n == 1
    assert "1 captions of more than 32 tokens are left out" in caplog.text
    write_shard(tmp_path / "0.tar", samples(["apple " * 60, "dog " * 60]))
    with pytest.raises(DataError, match="every caption exceeds the context length of 32 tokens"):
        evaluate(run, tiny, tmp_path)


def test_blip_is_measured_alone_and_nothing_is_written(
    tiny: Models, chair: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "erase_sd")
    blip = make_blip(tmp_path)
    record = evaluate(chair, dataclasses.replace(tiny, clips=(blip,)))
    assert {row.variant for row in record.measurements} == {"original"}
    assert {row.measure for row in record.measurements} == {*MEASURES} - {*DRIFT}
    assert "only the original is measured" in caplog.text
    assert not (chair.folder / "evaluation.json").exists()
    assert all(line[-1] == "" for line in evaluation_lines(record))


def test_another_clip_is_used_if_it_fits_and_refused_if_not(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    from transformers import CLIPModel

    other = tmp_path / "other"
    shutil.copytree(tiny.clips[0], other)
    model = CLIPModel.from_pretrained(other)
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    model.save_pretrained(other)
    here, there = (
        table(evaluate(run, dataclasses.replace(tiny, clips=(clip,))))
        for clip in (tiny.clips[0], other)
    )
    key = "drift_end", "forget", "erased"
    assert here[key] == there[key]  # the text towers are the run's own in either
    assert any(here[key] != there[key] for key in here if key[2] == "original")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"clip .*other: not the CLIP of .*hidden_size is 32"):
        evaluate(run, dataclasses.replace(tiny, clips=(other,)))


def test_other_pairs_or_another_model_than_the_runs_are_refused(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny.pairs(), data)
    captions = data / "results_20130124.token"
    captions.write_text(captions.read_text() + "4000000000.jpg#0\tA dog .\n")
    with pytest.raises(RunError, match="unlearned with other caption pairs than"):
        evaluate(run, dataclasses.replace(tiny, data=data))
    model = tmp_path / "sd"
    shutil.copytree(tiny.folder, model)
    (model / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(RunError, match=r"unlearned from .*, not .*/sd with its present weights"):
        evaluate(run, dataclasses.replace(tiny, model=model))


def test_run_before_unlearning_is_refused(tiny: Models) -> None:
    with pytest.raises(
        RunError, match=r"runs/none: not a run folder \(no run.json\); unlearn first"
    ):
        evaluate(Run(Path("runs/none")), tiny)


def test_damaged_weights_of_the_erased_encoder_are_one_line(tiny: Models, run: Run) -> None:
    weights = run.folder / "erased" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors: damaged"):
        evaluate(run, tiny)


def test_run_in_use_is_refused_before_any_work_and_evaluation_leaves_run_json_unchanged(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_file(run.folder / "run.json")
    with monkeypatch.context() as patch:
        patch.setattr("erase_sd.evaluation.stage.load_towers", None)
        with run.lock(), pytest.raises(RunError, match="in use by process"):
            evaluate(run, tiny)
    assert not (run.folder / "evaluation.json").exists()
    evaluate(run, tiny)
    assert hash_file(run.folder / "run.json") == before  # evaluation is not a stage


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name}", ""])
def test_template_without_exactly_one_place_for_the_name_is_refused(
    tiny: Models, run: Run, template: str
) -> None:
    with pytest.raises(SettingError, match=r"templates .*: needs \{\} exactly once"):
        evaluate(run, tiny, templates=[template])


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        ("a photo of a {}", "dog", "a photo of a dog"),
        ("a photo of a {}", "apple", "a photo of an apple"),
        ("A {}, drawn", "orange", "An orange, drawn"),
        ("the panda {}", "apple", "the panda apple"),
        ("a {}", "{}", "a {}"),
    ],
)
def test_prompt_has_the_article_of_the_class_name(template: str, name: str, prompt: str) -> None:
    assert prompt_of(template, name) == prompt


def test_two_concepts_share_their_measurements_and_a_missing_class_is_named(
    tiny: Models, tmp_path: Path
) -> None:
    two = Run(Path("runs/two"))
    unlearn(settings(concepts=(Concept("apple"), Concept("dog"))), tiny, two)
    write_class_folders(tmp_path / "three", {"apple": 2, "dog": 1, "cat": 3})
    record = evaluate(two, tiny, tmp_path / "three")
    assert {row.concept for row in record.measurements} == {"apple+dog"}
    rows = table(record)
    assert rows["zero_shot_prediction", "forget", "erased"].n == 3
    assert rows["zero_shot_retrieval", "forget", "erased"].n == 2
    write_class_folders(tmp_path / "less", {"apple": 2, "cat": 3})
    with pytest.raises(DataError, match="has no class dog; nearest: "):
        evaluate(two, tiny, tmp_path / "less")


def test_table_shows_shares_in_percent_and_drifts_as_they_are() -> None:
    def row(measure: str, variant: Variant, value: float, low: float | None) -> Measurement:
        high = None if low is None else value + 0.05
        return Measurement(
            run="apple", concept="apple", measure=measure, set="forget", variant=variant,
            value=value, n=40, low=low, high=high,
        )  # fmt: skip

    record = EvaluationRecord(
        about={"data": {"kind": "one folder per class", "folder": "c", "forget": 2, "retain": 3}},
        measurements=(
            row("image_retrieval_r1", "original", 0.5, 0.45),
            row("image_retrieval_r1", "erased", 0.025, 0.01),
            row("zero_shot_retrieval", "original", 0.25, None),
            row("drift_end", "erased", 0.5, 0.45),
        ),
    )
    assert evaluation_lines(record) == [
        ["image retrieval R@1", "forget", "40", "50.0 [45.0, 55.0]", "2.5 [1.0, 7.5]"],
        ["zero-shot retrieval", "forget", "40", "25.0", ""],
        ["drift, end", "forget", "40", "", "0.500 [0.450, 0.550]"],
    ]
    note = "2 forget and 3 retain images: one folder per class, c."
    assert evaluation_note(record).endswith(note)


def test_command_prints_a_table_or_one_json_object(
    tiny: Models, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erase_sd.models.recorded.models_of_run", lambda *_, **__: tiny)
    monkeypatch.setenv("COLUMNS", "120")
    write_class_folders(tmp_path / "c", {"apple": 2, "dog": 2})
    command = ["evaluate", "--run", "apple", "--images", str(tmp_path / "c"), "--quiet"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "zero-shot prediction" in shown.output and "drift, padding" in shown.output
    assert "2 forget and 2 retain images" in " ".join(shown.output.split())
    printed = json.loads(CliRunner().invoke(app, [*command, "--json", "--template", "a {}"]).stdout)
    assert printed == json.loads((run.folder / "evaluation.json").read_text())
    assert printed["about"]["templates"] == ["a {}"]
    record = erase_sd.evaluate("apple", images=tmp_path / "c", templates="a {}")
    assert json.loads(json.dumps(dataclasses.asdict(record))) == printed
    assert all(math.isfinite(row["value"]) for row in printed["measurements"])
