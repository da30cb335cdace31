"""Erased encoders on disk: loaded as they were saved, and refused if damaged or of another model."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import PRETEND_CARD

from erase_sd.data.concept import Concept
from erase_sd.errors import DivergedError, EraseError, ModelError, RunError
from erase_sd.files import write_json
from erase_sd.models import erased
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.run.records import Origin

ORIGIN = Origin(model="0", clip=("0",), data="0")
MENTIONS = {"apple": {"pippin": 3}}


def save(models: Models, weights: dict[str, Any]) -> Path:
    erased.save(
        Path("out"), weights, models,
        concepts=[Concept("apple")], settings={"steps": 2}, origin=ORIGIN, held_out={"x": 0.5},
        mentions=MENTIONS,
    )  # fmt: skip
    return Path("out")


def weights_of(models: Models, tower: str, factor: float) -> dict[str, torch.Tensor]:
    clip = load_clip(models.clip_folder(0), text_encoders(models.folder)[0])
    return {n: factor * p for n, p in clip.model.named_parameters() if n.startswith(tower)}


def test_saved_weights_and_record_are_what_is_loaded(tiny: Models) -> None:
    weights = weights_of(tiny, "text_model.", 2.0)
    folder = save(dataclasses.replace(tiny, revision="v1"), {"text_encoder": weights})
    loaded = erased.load(folder).state_dict()
    assert {n.removeprefix("text_model.") for n in loaded} == {
        n.removeprefix("text_model.") for n in weights
    }
    assert all(
        torch.equal(tensor, weights[f"text_model.{name.removeprefix('text_model.')}"])
        for name, tensor in loaded.items()
    )
    record = erased.check(folder)
    assert (record.concepts, record.settings, record.held_out) == (
        (Concept("apple"),), {"steps": 2}, {"x": 0.5},
    )  # fmt: skip
    assert (record.origin, record.base.fingerprint) == (ORIGIN, ORIGIN.model)
    assert (record.mentions, record.base.revision) == (MENTIONS, "v1")
    assert record.base.model == str(tiny.model) and not record.image_tower_sha256


def test_a_run_is_loaded_by_name_folder_or_its_erased_folder(erased_run: Run) -> None:
    encoders = [erased.load(place) for place in ("apple", erased_run.folder, erased_run.erased)]
    first, *others = [torch.cat([p.flatten() for p in e.parameters()]) for e in encoders]
    assert all(torch.equal(first, other) for other in others)


def test_an_encoder_is_loaded_as_float32_unless_asked_otherwise(erased_run: Run) -> None:
    assert erased.load("apple").dtype == torch.float32
    assert erased.load("apple", dtype="bf16").dtype == torch.bfloat16
    assert erased.load("apple", dtype=torch.float16, device="cpu").dtype == torch.float16
    assert erased.load("apple", device="meta").device.type == "meta"
    assert erased.load_all(erased_run.folder, device="meta")["text_encoder"].device.type == "meta"


def test_the_number_of_a_gpu_is_not_ignored(erased_run: Run) -> None:
    if torch.cuda.is_available() or PRETEND_CARD in os.environ:
        assert erased.load("apple", device=0).device == torch.device("cuda", 0)
    else:
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            erased.load("apple", device=0)


def test_an_encoder_is_not_loaded_in_a_precision_that_its_weights_do_not_fit(huge_run: Run) -> None:
    assert erased.load("apple", dtype="bf16").dtype == torch.bfloat16
    message = r"erased: (text_model\.)?final_layer_norm.bias is not finite in float16; needs more"
    with pytest.raises(ModelError, match=message):
        erased.load("apple", dtype="fp16")


@pytest.mark.parametrize("place", ["pear", "runs/pear"])
def test_a_run_that_does_not_exist_is_no_damaged_one(place: str) -> None:
    with pytest.raises(RunError, match=r"^runs/pear: no such folder; unlearn first$"):
        erased.load(place)


@pytest.mark.parametrize("place", [".", "runs/pear"])
def test_a_place_without_erased_encoders_is_one_line(place: str) -> None:
    Path("runs/pear").mkdir(parents=True)
    with pytest.raises(RunError, match=r"erase.json: missing; unlearn again") as caught:
        erased.load(place)
    assert "\n" not in str(caught.value)


def test_the_encoders_there_are_named_if_another_is_asked_for(erased_run: Run) -> None:
    with pytest.raises(RunError, match="has no text_encoder_2; it has text_encoder"):
        erased.load("apple", "text_encoder_2")


def test_weights_that_are_not_finite_are_never_saved(tiny: Models) -> None:
    weights = weights_of(tiny, "text_model.", 1.0)
    weights["text_model.final_layer_norm.bias"][0] = float("nan")
    with pytest.raises(DivergedError, match=r"final_layer_norm.bias is not finite"):
        save(tiny, {"text_encoder": weights})
    assert not Path("out").exists()


def test_an_erased_image_tower_is_saved_and_loaded_with_its_text_tower(tiny: Models) -> None:
    folder = save(tiny, {"text_encoder": weights_of(tiny, "", 1.0) | weights_of(tiny, "vis", 2.0)})
    clip = load_clip(tiny.clip_folder(0), text_encoders(tiny.folder)[0])
    after = erased.erased_clip(folder, "text_encoder", clip)
    weight = "encoder.layers.0.mlp.fc1.weight"
    before = clip.model.vision_model.state_dict()[weight]
    assert torch.equal(after.model.vision_model.state_dict()[weight], 2 * before)
    assert after.digest != clip.digest
    (folder / "image_tower" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"image_tower.*damaged, not the weights that were saved"):
        erased.check(folder)


@pytest.mark.parametrize("changes", [{"concepts": ()}, {"weights_sha256": {}}])
def test_an_erasure_of_nothing_is_one_line(erased_run: Run, changes: dict[str, Any]) -> None:
    record = dataclasses.replace(erased_run.erasure(), **changes)
    write_json(erased_run.erased / "erase.json", dataclasses.asdict(record))
    with pytest.raises(RunError, match=r"erase.json: damaged, names no encoder; unlearn again"):
        erased.load("apple")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", None, "missing; unlearn again"),
        ("model.safetensors", b"x", "damaged, not the weights that were saved; unlearn again"),
        ("erase.json", None, "missing; unlearn again"),
        ("erase.json", b"{}", r"damaged or of another version \(.*\); unlearn again"),
    ],
)
def test_missing_or_damaged_files_are_one_line(
    erased_run: Run, name: str, data: bytes | None, message: str
) -> None:
    path = erased_run.erased / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(RunError, match=rf"{name}: {message}") as caught:
        erased.check(erased_run.erased)
    assert "\n" not in str(caught.value)


def test_a_run_is_only_used_with_the_model_it_was_unlearned_from(
    tiny: Models, erased_run: Run, tmp_path: Path
) -> None:
    assert erased.check_base(erased_run, tiny) == erased_run.erasure()
    shutil.copytree(tiny.folder, tmp_path / "other")
    (tmp_path / "other" / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(
        RunError, match=r"unlearned from .*sd, not .*other with its present weights"
    ):
        erased.check_base(erased_run, dataclasses.replace(tiny, model=tmp_path / "other"))


def test_a_run_that_is_not_unlearned_has_no_base(tiny: Models) -> None:
    with pytest.raises(EraseError, match=r"not a run folder \(no run.json\); unlearn first"):
        erased.check_base(Run(Path("runs/pear")), tiny)
