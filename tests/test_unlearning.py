"""The unlearn stage on tiny real models: reproducible, safe to repeat, and clear about bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from unlearn_runs import few, original_weights, same, short, weights

from erase_sd import runtime
from erase_sd.checked import hash_folder
from erase_sd.data.concept import Concept
from erase_sd.data.split import ConceptSets, split_by_concept
from erase_sd.errors import DataError, ModelError, RunError, SettingError
from erase_sd.methods.base import ClosedFormMethod
from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase
from erase_sd.methods.lipschitz import Lipschitz
from erase_sd.methods.registry import METHODS
from erase_sd.models.clip import Clip, FreeEmbeddings
from erase_sd.models.presets import Models, resolve
from erase_sd.models.recorded import models_of_run
from erase_sd.run import Run
from erase_sd.unlearning import stage
from erase_sd.unlearning.pairs import concept_sets_of
from erase_sd.unlearning.settings import METHOD_DEFAULTS
from erase_sd.unlearning.stage import unlearn


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny: Models, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With random weights no noise helps, and every validation would be rolled back.
    monkeypatch.setattr(Lipschitz, "residual", lambda method, student: 1 / (2 + method.stage))
    runs = [Run(Path("runs") / name) for name in ("a", "b", "c")]
    # A step of all of a U-Net's weights changes more than one of a text encoder's.
    rate = 1e-4 if method == "forget-me-not" else 1e-2
    for run, seed in zip(runs, (0, 0, 1), strict=True):
        settings = short(method=method, seed=seed, learning_rate=rate, hyperparameters=few(method))
        unlearn(settings, tiny, run)
    assert same(weights(runs[0]), weights(runs[1]))
    # The split is the same for every seed, and a closed form samples nothing else.
    closed_form = issubclass(METHODS[method], ClosedFormMethod)
    assert same(weights(runs[0]), weights(runs[2])) == closed_form


def test_in_bf16_only_the_towers_run_in_lower_precision(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast: dict[str, set[bool]] = {"loss": set(), "tower": set()}
    mean, encode_text = Tensor.mean, Clip.encode_text

    def of_loss(self: Tensor, *dimensions: int) -> Tensor:
        if self.requires_grad:
            autocast["loss"].add(torch.is_autocast_enabled(runtime.device().type))
        return mean(self, *dimensions)

    def tower(
        self: Clip, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        autocast["tower"].add(torch.is_autocast_enabled(runtime.device().type))
        return encode_text(self, ids, unit, free)

    monkeypatch.setattr(Tensor, "mean", of_loss)
    monkeypatch.setattr(Clip, "encode_text", tower)
    unlearn(short(dtype="bf16", mine_mentions=False), tiny, Run(Path("runs/a")))
    assert autocast == {"loss": {False}, "tower": {True}}


@pytest.mark.parametrize(
    ("small", "message"),
    [
        ("forget", "no caption of the held-out split is left once the concept is removed"),
        (
            "retain",
            "the held-out split needs at least 2 different captions without the concept, got 1",
        ),
    ],
)
def test_a_split_too_small_to_measure_is_refused_before_the_first_step(
    tiny: Models, small: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shrunk(*args: Any) -> ConceptSets:
        sets = split_by_concept(*args)
        retain = sets.images("retain", "held-out")
        if small == "forget":
            return dataclasses.replace(
                sets, by_split={**sets.by_split, ("forget", "held-out"): retain}
            )
        one = dataclasses.replace(retain[0], captions=retain[0].captions[:1])
        return dataclasses.replace(
            sets,
            by_split={**sets.by_split, ("retain", "held-out"): (one,)},
            mentions={**sets.mentions, one.image: sets.mentions[one.image][:1]},
        )

    monkeypatch.setattr(stage, "split_by_concept", shrunk)
    with pytest.raises(DataError, match=message):
        unlearn(short(), tiny, Run(Path("runs/a")))


def test_a_first_layer_beyond_the_last_is_refused(tiny: Models) -> None:
    settings = short(method="projection", hyperparameters={"first_layer": 2})
    with pytest.raises(SettingError, match=r"hyperparameters first_layer: needs at most 1 .*got 2"):
        unlearn(settings, tiny, Run(Path("runs/a")))


def test_the_original_model_is_left_as_it_is(tiny: Models) -> None:
    folders = tiny.folder, tiny.clip_folder(0)
    before = [hash_folder(folder, "*") for folder in folders]
    unlearn(short(), tiny, Run(Path("runs/a")))
    assert [hash_folder(folder, "*") for folder in folders] == before
    base, erased = original_weights(tiny), weights(Run(Path("runs/a")))
    assert base.keys() == erased.keys() and not same(base, erased)


def test_resuming_with_other_settings_is_refused_and_names_them(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(), tiny, run)
    before = weights(run)
    with pytest.raises(RunError, match=r"began with learning_rate 0\.01, now it is 0\.02"):
        unlearn(short(learning_rate=0.02), tiny, run)
    assert same(before, weights(run))


def test_a_finished_run_is_left_as_it_is(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(), tiny, run)
    [result] = run.unlearned().encoders.values()
    assert set(result.held_out) == {"residual_concept_similarity", "retained_fidelity"}
    written = [path.stat().st_mtime_ns for path in sorted(run.folder.rglob("*"))]
    unlearn(short(), tiny, run)
    assert [path.stat().st_mtime_ns for path in sorted(run.folder.rglob("*"))] == written


def test_a_finished_run_finds_its_models_where_they_lie_now(tiny: Models) -> None:
    run, sources = Run(Path("runs/a")), {"clip": tiny.clips[0], "data": tiny.data}
    shutil.copytree(tiny.folder, "old")
    unlearn(short(), resolve(model="old", **sources), run)
    assert models_of_run(run).model == "old"
    Path("old").rename("new")
    unlearn(short(), resolve(model="new", **sources), run)
    assert models_of_run(run).model == "new"


def test_the_record_holds_the_methods_own_defaults_where_none_are_set(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    done: list[tuple[object, ...]] = []
    settings = short(learning_rate=None, retain_floor=None)
    unlearn(settings, tiny, run, lambda *own: done.append(own[:2]))
    assert done[-1] == (6, 6)
    record = run.unlearned()
    assert record.concepts == (Concept("apple"),)
    assert {name: record.settings[name] for name in METHOD_DEFAULTS} == {
        "learning_rate": AnchoredCLIPErase.learning_rate, "steps": 6,
        "forget_threshold": AnchoredCLIPErase.forget_threshold,
        "retain_floor": AnchoredCLIPErase.retain_floor,
    }  # fmt: skip
    [before, *_, last] = run.training()
    assert (before.step, last.step) == (2, 6) and set(last.terms) == {"anchor", "token"}


def test_a_trained_image_tower_is_saved_beside_the_text_encoder(tiny: Models) -> None:
    for towers in ("text", "both"):
        run = Run(Path("runs") / towers)
        unlearn(short(method="cliperase", towers=towers), tiny, run)
        image_tower = run.erased / "image_tower" / "model.safetensors"
        assert image_tower.exists() == (towers == "both")
    base = load_file(tiny.clip_folder(0) / "model.safetensors")
    trained = load_file(image_tower)
    assert set(trained) == {n for n in base if n.startswith("vision_model.")}
    assert not same(trained, {n: base[n] for n in trained})


def test_later_stages_read_the_same_pairs_and_refuse_others(tiny: Models, tmp_path: Path) -> None:
    run = Run(Path("runs/a"))
    with pytest.raises(RunError, match="unlearn first"):
        concept_sets_of(run, tiny)
    unlearn(short(), tiny, run)
    data, sets = concept_sets_of(run, tiny)
    assert sets == split_by_concept(data.items, short().concepts)
    other = tmp_path / "other"
    shutil.copytree(tiny.pairs(), other)
    captions = next(other.rglob("*.token"))
    captions.write_text(captions.read_text().replace("#0\t", "#0\tnow ", 1))
    with pytest.raises(RunError, match="unlearned with other caption pairs than those of"):
        concept_sets_of(run, dataclasses.replace(tiny, data=other))


def damaged(models: Models, tmp_path: Path, change: str) -> Models:
    """`models` with a damaged copy of their CLIP."""
    folder = tmp_path / "damaged"
    shutil.copytree(models.clip_folder(0), folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif change == "garbage":
        file.write_bytes(b"not a tensor file")
    elif change == "code":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    else:
        if change == "missing":
            del tensors[name]
        elif change == "shape":
            tensors[name] = tensors[name][:, :-1].contiguous()
        elif change == "nan":
            tensors[name][0, 0] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
    return dataclasses.replace(models, clips=(folder,))


@pytest.mark.parametrize("change", ["truncated", "garbage", "code", "missing", "shape", "nan"])
def test_damaged_weights_are_one_line_and_leave_nothing(
    tiny: Models, tmp_path: Path, change: str
) -> None:
    with pytest.raises(ModelError, match="damaged") as caught:
        unlearn(short(), damaged(tiny, tmp_path, change), Run(Path("runs/a")))
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_text_encoder_of_another_width_is_refused_before_any_step(
    tiny: Models, tmp_path: Path
) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path / "wide"
    shutil.copytree(tiny.folder, folder)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size = 64
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(ModelError, match="hidden_size"):
        unlearn(short(), dataclasses.replace(tiny, model=folder), Run(Path("runs/a")))
    assert not Path("runs").exists()


def test_a_concept_in_no_caption_suggests_near_words(tiny: Models) -> None:
    with pytest.raises(DataError, match=r"concept aple: in no caption of the data; near.*apple"):
        unlearn(short(concepts=(Concept("aple"),)), tiny, Run(Path("runs/a")))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("method", "factor"), [("uce", 1), ("esd", 1.26), ("forget-me-not", 7), ("projection", 1)]
)
def test_the_disk_has_room_for_what_is_erased_in_fp32_and_for_checkpoints_of_what_trains(
    tiny: Models, method: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`esd` trains the cross-attention, a fifteenth of this U-Net."""
    module = "text_encoder" if method == "projection" else "unet"
    shutil.copytree(tiny.folder, tmp_path / "sd")
    [file] = (tmp_path / "sd" / module).glob("*.safetensors")
    in_fp32 = file.stat().st_size
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
    (tmp_path / "sd" / module / "foreign.safetensors").write_bytes(b"a pointer of git lfs")
    settings = short(method=method, hyperparameters=few(method))
    models = dataclasses.replace(tiny, model=tmp_path / "sd")

    def with_free(sizes: float) -> None:
        usage = SimpleNamespace(free=sizes * in_fp32)
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _: usage)
            patch.setattr(stage, "load_towers", _enough)
            unlearn(settings, models, Run(Path("run")))

    for copies in ("both precisions", "half precision only"):
        with pytest.raises(EnoughError):
            with_free(factor + 0.1)
        with pytest.raises(RunError, match="are free on its disk"):
            with_free(0.8 * factor)
        if copies == "both precisions":
            file.unlink()


def test_the_disk_has_room_for_both_towers_if_both_train(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = tiny.clip_folder(0).glob("*.safetensors")
    usage = SimpleNamespace(free=6.5 * file.stat().st_size)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr(stage, "load_towers", _enough)
    with pytest.raises(EnoughError):
        unlearn(short(), tiny, Run(Path("run")))
    with pytest.raises(RunError, match="are free on its disk"):
        unlearn(short(method="cliperase", towers="both"), tiny, Run(Path("run")))


class EnoughError(Exception):
    """Stands for the rest of an unlearning, which found the disk large enough."""


def _enough(*_: object) -> None:
    raise EnoughError
