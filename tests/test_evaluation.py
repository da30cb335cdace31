"""The evaluation of a run on tiny real models: what is measured, on what, and what is written."""

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
    write_class_folders,
    write_shard,
)
from safetensors.torch import load_file, save_file
from test_models import sd2, sdxl  # noqa: F401  (fixtures)
from typer.testing import CliRunner

import erase_sd
from erase_sd.cli import app
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read
from erase_sd.data.split import split
from erase_sd.errors import DataError, ModelError, RunError, SettingError
from erase_sd.evaluation.clip_measures import MEASURES, prompt_of
from erase_sd.evaluation.stage import Evaluation, Row, cells, evaluate
from erase_sd.files import hash_file
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip, text_encoders
from erase_sd.run import Run
from erase_sd.unlearning import synthetic as synth
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

APPLES = (Concept("apple"),)
DRIFT = [name for name in MEASURES if name.startswith("drift")]


def settings(**changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "concepts": APPLES, "steps": 4, "validate_every": 2, "forget_batch": 8, "retain_batch": 8,
        "rate": 1e-2, "retain_floor": 0.0,
    }  # fmt: skip
    return Settings(**(fields | changes))


@pytest.fixture
def run(tiny: Models) -> Run:
    made = Run(Path("runs/apple"))
    unlearn(settings(), tiny, made)
    return made


@pytest.fixture
def chair(tiny: Models) -> Run:
    """A run whose held-out images have some with a chair and nothing else."""
    made = Run(Path("runs/chair"))
    unlearn(settings(concepts=(Concept("chair"),), seed=2), tiny, made)
    return made


def table(found: Evaluation) -> dict[tuple[str, str, str], Row]:
    return {(row.measure, row.group, row.arm): row for row in found.rows}


def test_every_measure_has_both_sides_and_both_arms_and_is_written(
    tiny: Models, chair: Run
) -> None:
    found = evaluate(chair, tiny)
    rows = table(found)
    assert len(rows) == len(found.rows)
    for measure in MEASURES:
        for group in ("forget", "retain"):
            arms = [arm for arm in ("original", "erased") if (measure, group, arm) in rows]
            if measure == "drift_subject" and group == "retain":
                assert arms == []  # these captions do not mention it
            else:
                assert arms == (["erased"] if measure in DRIFT else ["original", "erased"])
    for row in found.rows:
        assert (row.run, row.concept) == ("chair", "chair")
        assert 0 <= row.value <= (2 if row.measure in DRIFT else 1) and row.n > 0
        assert row.low is None or row.low <= row.value + 1e-9 <= row.high + 2e-9  # type: ignore[operator]
    written = json.loads((chair.folder / "evaluation.json").read_text())
    assert written["rows"] == [dataclasses.asdict(row) for row in found.rows]
    assert written["about"] == found.about
    text = (chair.folder / "evaluation.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert [line["measure"] for line in lines] == [row.measure for row in found.rows]
    assert [float(line["value"]) for line in lines] == [row.value for row in found.rows]


def test_the_pairs_are_the_held_out_ones_of_the_runs_own_split(tiny: Models) -> None:
    seeded = Run(Path("runs/seeded"))
    unlearn(settings(seed=3), tiny, seeded)
    found = evaluate(seeded, tiny)
    sides = split(read(tiny.pairs()).items, APPLES)
    forget, retain = (side["held-out"] for side in (sides.forget, sides.retain))
    about = found.about["data"]
    assert (about["forget"], about["retain"]) == (len(forget), len(retain))
    rows = table(found)
    captions = {caption for item in forget for caption in item.captions}
    assert rows["image_retrieval_r1", "forget", "original"].n == len(captions)
    assert rows["text_retrieval_r1", "forget", "original"].n == len(forget)
    assert rows["drift_subject", "forget", "erased"].n == sum("apple" in c for c in captions)


def test_retrieval_is_what_counting_by_hand_over_clips_own_features_gives(
    tiny: Models, run: Run
) -> None:
    found = table(evaluate(run, tiny))
    clip = load_clip(tiny.clips[0], text_encoders(tiny.folder)[0])
    data = read(tiny.pairs())
    sides = split(data.items, APPLES)
    items = [*sides.forget["held-out"], *sides.retain["held-out"]]
    with torch.no_grad():
        images = clip.encode_image(clip.pixels([data.path_of(item) for item in items]))
    hits = []
    for caption in {c for item in sides.forget["held-out"] for c in item.captions}:
        scores = (clip.encode_texts(clip.tokens([caption]))[0] @ images.T)[0]
        first = sorted(range(len(items)), key=lambda i: -float(scores[i]))[:5]
        hits.append(any(caption in items[i].captions for i in first))
    assert found["image_retrieval_r5", "forget", "original"].value == sum(hits) / len(hits)


def test_an_encoder_that_did_not_change_measures_the_same_and_drifts_nowhere(
    tiny: Models,
) -> None:
    same = Run(Path("runs/same"))
    unlearn(settings(retain_floor=1.0), tiny, same)  # every step is rolled back
    rows = table(evaluate(same, tiny))
    for (measure, group, arm), row in rows.items():
        if arm == "erased":
            if measure in DRIFT:
                assert row.value == pytest.approx(0, abs=1e-6)
            else:
                assert row.value == rows[measure, group, "original"].value


def test_the_images_of_the_original_are_embedded_once_and_then_read_back(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run, tiny)
    monkeypatch.setattr(Clip, "encode_image", lambda *_, **__: pytest.fail("computed again"))
    assert evaluate(run, tiny).rows == first.rows


def test_pairs_that_the_model_made_are_measured_too(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synth, "FORGET", 12)
    monkeypatch.setattr(synth, "RETAIN", 16)
    folder = erase_sd.unlearn(
        "lighthouse", data="synth", model=tiny.model, clip=tiny.clips, steps=2, validate_every=2,
        retain_floor=0.0,
    )  # fmt: skip
    capsys.readouterr()
    found = erase_sd.evaluate(folder)  # the run's own models and data, by run.json
    assert "the zero-shot measures are left out" in capsys.readouterr().err  # none of COCO's
    rows = table(found)
    assert rows["text_retrieval_r1", "forget", "erased"].n == 2  # a fifth of 12
    assert rows["drift_subject", "forget", "erased"].value > 0


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_of_other_stable_diffusions_the_first_encoder_is_measured(
    kind: str, request: pytest.FixtureRequest
) -> None:
    models = request.getfixturevalue(kind)
    made = Run(Path("runs/a"))
    unlearn(settings(), models, made)
    found = evaluate(made, models)
    assert found.about["encoder"] == "text_encoder"
    assert table(found)["drift_end", "forget", "erased"].value > 0


def test_an_image_tower_that_was_trained_is_the_erased_arms(tiny: Models) -> None:
    both = Run(Path("runs/both"))
    unlearn(settings(towers="both", method="cliperase"), tiny, both)
    found = evaluate(both, tiny)
    assert found.about["image_tower_erased"]
    (tower,) = both.folder.glob("erased/image_tower/*.safetensors")
    seen = load_file(tower)
    # An image tower of zeros gives every image one feature: nothing can be found by it.
    save_file({name: torch.zeros_like(t) for name, t in seen.items()}, tower)
    description = both.folder / "erased" / "erase.json"
    described = json.loads(description.read_text())
    description.write_text(
        json.dumps(described | {"image_tower_sha256": {"text_encoder": hash_file(tower)}})
    )
    blind = table(evaluate(both, tiny))
    assert blind["text_retrieval_r1", "retain", "erased"].value == 0
    before = table(found)
    for key, row in blind.items():
        if key[2] == "original":
            assert row == before[key]
    tower.write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"image_tower/model\.safetensors: damaged"):
        evaluate(both, tiny)


def test_labelled_images_give_zero_shot_and_the_drift_of_their_prompts(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    write_cifar_binary(tmp_path / "cifar", [APPLE, 0, PEPPER, APPLE, 5])
    found = evaluate(run, tiny, tmp_path / "cifar", ["a photo of a {}", "one {}"])
    rows = table(found)
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
    assert found.about["templates"] == ["a photo of a {}", "one {}"]
    assert found.about["data"]["kind"] == "CIFAR-100, test"


def test_zero_shot_is_what_clips_own_nearest_prompt_gives(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    write_class_folders(tmp_path / "classes", {"apple": 6, "dog": 6, "red_car": 6})
    rows = table(evaluate(run, tiny, tmp_path / "classes", ["a {}"]))
    clip = load_clip(tiny.clips[0], text_encoders(tiny.folder)[0])
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


def test_captioned_shards_are_measured_like_the_runs_own_pairs(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    said = ["an apple", "a red apple in the snow", "a dog", "a cat", "a dog and a man", "snow"]
    write_shard(tmp_path / "cc" / "00000.tar", samples(said))
    rows = table(evaluate(run, tiny, tmp_path / "cc"))
    assert {measure for measure, _, _ in rows} == set(MEASURES)
    assert rows["zero_shot_prediction", "retain", "original"].n == 2  # a dog, a cat
    assert rows["text_retrieval_r1", "retain", "original"].n == 4
    assert rows["image_retrieval_r10", "forget", "erased"].value == 1  # there are but six


@pytest.mark.parametrize(
    "captions", [["an apple and a dog", "a dog", "a cat"], ["an apple", "a dog and a cat"]]
)
def test_without_a_class_on_either_side_zero_shot_is_left_out_and_that_is_said(
    tiny: Models, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], captions: list[str]
) -> None:
    write_shard(tmp_path / "0.tar", samples(captions))
    measured = {row.measure for row in evaluate(run, tiny, tmp_path).rows}
    assert not any(name.startswith("zero_shot") for name in measured)
    assert "image_retrieval_r1" in measured and "drift_end" in measured
    assert capsys.readouterr().err.count("the zero-shot measures are left out") == 1


def test_a_caption_longer_than_the_model_is_left_out_and_counted(
    tiny: Models, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "0.tar", samples(["an apple", "apple " * 60, "a dog", "a cat"]))
    rows = table(evaluate(run, tiny, tmp_path))
    assert rows["text_retrieval_r1", "forget", "original"].n == 1
    assert "1 captions of more tokens than the model has room for" in capsys.readouterr().err
    write_shard(tmp_path / "0.tar", samples(["apple " * 60, "dog " * 60]))
    with pytest.raises(DataError, match="the model has room for none of the captions"):
        evaluate(run, tiny, tmp_path)


def test_a_blip_is_measured_alone_and_nothing_is_written(
    tiny: Models, chair: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blip = make_blip(tmp_path)
    found = evaluate(chair, dataclasses.replace(tiny, clips=(blip,)))
    assert {row.arm for row in found.rows} == {"original"}
    assert {row.measure for row in found.rows} == {*MEASURES} - {*DRIFT}
    assert "the original is measured alone" in capsys.readouterr().err
    assert not (chair.folder / "evaluation.json").exists()
    assert all(line[-1] == "" for line in cells(found.rows))


def test_another_clip_is_used_where_it_fits_and_refused_where_not(
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
    with pytest.raises(ModelError, match=r"not the text encoder of --clip .*hidden_size is 32"):
        evaluate(run, dataclasses.replace(tiny, clips=(other,)))


def test_pairs_or_a_model_that_are_not_the_runs_are_refused(
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
    with pytest.raises(RunError, match=r"unlearned from .* as it was then; the files of .*/sd are"):
        evaluate(run, dataclasses.replace(tiny, model=model))


def test_before_unlearning_there_is_nothing_to_evaluate(tiny: Models) -> None:
    with pytest.raises(RunError, match=r"runs/none: unlearn is missing; unlearn first"):
        evaluate(Run(Path("runs/none")), tiny)


def test_damaged_weights_of_the_erased_encoder_are_one_line(tiny: Models, run: Run) -> None:
    weights = run.folder / "erased" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors: damaged"):
        evaluate(run, tiny)


def test_a_run_that_another_process_writes_is_left_alone(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_file(run.folder / "run.json")
    with run.lock(), pytest.raises(RunError, match="in use by process"):
        evaluate(run, tiny)
    assert not (run.folder / "evaluation.json").exists()
    evaluate(run, tiny)
    assert hash_file(run.folder / "run.json") == before  # it is no stage


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name}", ""])
def test_a_template_without_one_place_for_the_name_is_refused(
    tiny: Models, run: Run, template: str
) -> None:
    with pytest.raises(SettingError, match=r"needs \{\} once"):
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
def test_a_prompt_has_the_article_of_its_name(template: str, name: str, prompt: str) -> None:
    assert prompt_of(template, name) == prompt


def test_two_concepts_are_one_row_and_a_class_that_lacks_is_named(
    tiny: Models, tmp_path: Path
) -> None:
    two = Run(Path("runs/two"))
    unlearn(settings(concepts=(Concept("apple"), Concept("dog"))), tiny, two)
    write_class_folders(tmp_path / "three", {"apple": 2, "dog": 1, "cat": 3})
    found = evaluate(two, tiny, tmp_path / "three")
    assert {row.concept for row in found.rows} == {"apple+dog"}
    rows = table(found)
    assert rows["zero_shot_prediction", "forget", "erased"].n == 3
    assert rows["zero_shot_retrieval", "forget", "erased"].n == 2
    write_class_folders(tmp_path / "less", {"apple": 2, "cat": 3})
    with pytest.raises(DataError, match="no class dog there; near: "):
        evaluate(two, tiny, tmp_path / "less")


def test_the_table_has_shares_in_percent_and_drifts_as_they_are() -> None:
    def row(measure: str, arm: str, value: float, low: float | None) -> Row:
        high = None if low is None else value + 0.05
        return Row("apple", "apple", measure, "forget", arm, value, 40, low, high)  # type: ignore[arg-type]

    rows = [
        row("image_retrieval_r1", "original", 0.5, 0.45),
        row("image_retrieval_r1", "erased", 0.025, 0.01),
        row("zero_shot_retrieval", "original", 0.25, None),
        row("drift_end", "erased", 0.5, 0.45),
    ]
    assert cells(rows) == [
        ["image retrieval R@1", "forget", "40", "50.0 [45.0, 55.0]", "2.5 [1.0, 7.5]"],
        ["zero shot retrieval", "forget", "40", "25.0", ""],
        ["drift end", "forget", "40", "", "0.500 [0.450, 0.550]"],
    ]


def test_the_command_prints_a_table_or_one_json_object(
    tiny: Models, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erase_sd.models.presets.of_run", lambda *_, **__: tiny)
    monkeypatch.setenv("COLUMNS", "120")
    write_class_folders(tmp_path / "c", {"apple": 2, "dog": 2})
    asked = ["evaluate", "--run", "apple", "--images", str(tmp_path / "c"), "--quiet"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "zero shot prediction" in shown.output and "drift padding" in shown.output
    assert "2 images to forget and 2 to retain" in " ".join(shown.output.split())
    plain = json.loads(CliRunner().invoke(app, [*asked, "--json", "--template", "a {}"]).stdout)
    assert plain == json.loads((run.folder / "evaluation.json").read_text())
    assert plain["about"]["templates"] == ["a {}"]
    assert erase_sd.evaluate("apple", images=tmp_path / "c", templates="a {}").rows == [
        Row(**row) for row in plain["rows"]
    ]
    assert all(math.isfinite(row["value"]) for row in plain["rows"])
