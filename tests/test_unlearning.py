"""The loop on tiny real models: same seed same weights, resuming, rolling back, never NaN."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import erase_sd
from erase_sd.data.concept import Concept
from erase_sd.data.split import Part, Split
from erase_sd.errors import DataError, DivergedError, ModelError, RunError, SettingError
from erase_sd.files import hash_folder
from erase_sd.methods import METHODS, Batch, Student, World
from erase_sd.methods.anchored import AnchoredCLIPErase
from erase_sd.methods.lipschitz import Lipschitz
from erase_sd.methods.projection import Projection
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning import stage as unlearning
from erase_sd.unlearning.settings import OF_METHOD, Settings, concepts_from
from erase_sd.unlearning.stage import unlearn
from erase_sd.unlearning.trainer import Loop

APPLE = (Concept("apple"),)


def short(**changes: object) -> Settings:
    fields: dict[str, object] = {
        "concepts": APPLE, "steps": 6, "validate_every": 2, "forget_batch": 8, "retain_batch": 8,
        "rate": 1e-2, "retain_floor": 0.0,
    }  # fmt: skip
    return Settings(**(fields | changes))  # type: ignore[arg-type]


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "erased" / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny: Models, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With random weights no noise helps, and every look would be taken back.
    monkeypatch.setattr(Lipschitz, "left", lambda method, student: 1 / (2 + method.stage))
    runs = [Run(Path("runs") / name) for name in ("a", "b", "c")]
    for run, seed in zip(runs, (0, 0, 1), strict=True):
        unlearn(short(method=method, seed=seed), tiny, run)
    assert same(weights(runs[0]), weights(runs[1]))
    # The pairs are parted alike for every seed, and a closed form draws nothing else at random.
    assert same(weights(runs[0]), weights(runs[2])) == (method == "projection")


def test_in_bf16_the_towers_alone_run_in_it_and_no_similarity_does(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bool]] = {"loss": set(), "tower": set()}
    honest, encode = AnchoredCLIPErase.loss, Clip.encode_text

    def loss(self: AnchoredCLIPErase, student: Student, batch: Batch) -> dict[str, Tensor]:
        seen["loss"].add(torch.is_autocast_enabled("cpu"))
        return honest(self, student, batch)

    def tower(self: Clip, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
        seen["tower"].add(torch.is_autocast_enabled("cpu"))
        return encode(self, ids, unit)

    monkeypatch.setattr(AnchoredCLIPErase, "loss", loss)
    monkeypatch.setattr(Clip, "encode_text", tower)
    unlearn(short(dtype="bf16"), tiny, Run(Path("runs/a")))
    assert seen == {"loss": {False}, "tower": {True}}


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_a_part_too_small_to_be_measured_is_refused_before_the_first_step(
    tiny: Models, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unlearning.split

    def small(*given: Any) -> Split:
        sides = whole(*given)
        if side == "retain":
            [first, *_] = sides.retain["held-out"]
            one = dataclasses.replace(first, captions=first.captions[:1])
            return Split(sides.forget, sides.retain | {"held-out": (one,)})
        return Split(sides.forget | {"held-out": sides.retain["held-out"]}, sides.retain)

    monkeypatch.setattr(unlearning, "split", small)
    why = {"forget": "no held-out caption is left", "retain": "one held-out caption without"}
    with pytest.raises(RunError, match=why[side]):
        unlearn(short(), tiny, Run(Path("runs/a")))


def test_a_first_layer_beyond_the_last_is_refused(tiny: Models) -> None:
    with pytest.raises(SettingError, match="--weight first_layer: needs at most 1 here, got 2"):
        unlearn(short(method="projection", weights={"first_layer": 2}), tiny, Run(Path("runs/a")))


def test_the_original_is_left_as_it_was(tiny: Models) -> None:
    before = hash_folder(tiny.model, "*"), hash_folder(tiny.clips[0], "*")
    unlearn(short(), tiny, Run(Path("runs/a")))
    assert (hash_folder(tiny.model, "*"), hash_folder(tiny.clips[0], "*")) == before
    base = load_file(tiny.model / "text_encoder" / "model.safetensors")
    erased = weights(Run(Path("runs/a")))
    assert base.keys() == erased.keys() and not same(base, erased)


@pytest.mark.parametrize("towers", ["text", "both"])
def test_projection_and_temperature_never_move(
    tiny: Models, towers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: dict[str, Tensor] = {}
    save = Loop.weights

    def keep(loop: Loop) -> dict[str, Tensor]:
        moved.update({n: p.detach().clone() for n, p in loop.clip.model.named_parameters()})
        return save(loop)

    monkeypatch.setattr(Loop, "weights", keep)
    unlearn(short(method="cliperase", towers=towers), tiny, Run(Path("runs/a")))
    base = load_file(tiny.clips[0] / "model.safetensors")
    for name in ("text_projection.weight", "visual_projection.weight", "logit_scale"):
        assert torch.equal(moved[name], base[name])
    vision = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(moved[vision], base[vision]) == (towers == "text")


class StopError(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tiny: Models, at: int
) -> None:
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(short(), tiny, whole)

    def stop(done: int, of: int, terms: dict[str, float]) -> None:
        if done == at:
            raise StopError

    with pytest.raises(StopError):
        unlearn(short(), tiny, broken, stop)
    assert broken.status("unlearn") == "running"
    assert not (broken.folder / "erased").exists()
    unlearn(short(), tiny, broken)
    assert same(weights(whole), weights(broken))
    assert not (broken.folder / "checkpoint.safetensors").exists()


def test_going_on_with_other_settings_is_refused_and_names_them(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(), tiny, run)
    before = weights(run)
    with pytest.raises(RunError, match=r"began with rate 0\.01, now it is 0\.02"):
        unlearn(short(rate=0.02), tiny, run)
    assert same(before, weights(run))


def test_a_finished_run_is_left_alone(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    first = unlearn(short(), tiny, run)
    changed = (run.folder / "run.json").stat().st_mtime_ns
    assert unlearn(short(), tiny, run) == first
    assert (run.folder / "run.json").stat().st_mtime_ns == changed


def test_a_broken_floor_is_rolled_back_with_half_the_rate(
    tiny: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(retain_floor=1.0), tiny, run)  # no step can keep everything
    log = [json.loads(line) for line in (run.folder / "train.jsonl").read_text().splitlines()]
    assert [row["rolled_back"] for row in log] == [True, True, True]
    assert "every look was rolled back: the weights are still the" in capsys.readouterr().err
    base = load_file(tiny.model / "text_encoder" / "model.safetensors")
    assert same(base, weights(run))


def test_a_schedule_of_its_own_does_not_switch_the_floor_off(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lipschitz, "left", lambda method, student: 1 / (2 + method.stage))
    run = Run(Path("runs/a"))
    unlearn(short(method="lipschitz", retain_floor=1.0), tiny, run)
    log = [json.loads(line) for line in (run.folder / "train.jsonl").read_text().splitlines()]
    assert all(row["rolled_back"] for row in log)


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: object, student: object, batch: object) -> dict[str, Tensor]:
        return {"anchor": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(AnchoredCLIPErase, "loss", poisoned)
    run = Run(Path("runs/a"))
    with pytest.raises(DivergedError, match=r"step 1 .*before a look that was kept"):
        unlearn(short(), tiny, run)
    assert not (run.folder / "erased").exists()


def test_a_run_that_diverges_later_keeps_the_last_good_weights_and_says_so(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = AnchoredCLIPErase.loss

    def poisoned(self: AnchoredCLIPErase, student: Student, batch: Batch) -> dict[str, Tensor]:
        late = batch.done >= 0.5  # from step 4 of 6 on
        return honest(self, student, batch) | ({"bad": torch.tensor(math.nan)} if late else {})

    broken = Run(Path("runs/broken"))
    seen: dict[str, Tensor] = {}
    validate = Loop._validate

    def watch(loop: Loop, terms: dict[str, float], pace: float) -> None:
        validate(loop, terms, pace)
        seen.update(loop.good)

    monkeypatch.setattr(Loop, "_validate", watch)
    monkeypatch.setattr(AnchoredCLIPErase, "loss", poisoned)
    unlearn(short(), tiny, broken)
    entry = broken.manifest["stages"]["unlearn"]
    assert entry["status"] == "done" and entry["stopped"] == "diverged"
    assert (
        "diverged by step 4 (loss nan); the weights of step 2 are kept" in capsys.readouterr().err
    )
    kept = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in weights(broken).items()}
    assert all(torch.equal(kept[n], t) for n, t in seen.items())


def test_measures_that_are_not_finite_end_it_like_a_loss_that_is_not(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, looks = Loop.measure, iter((False, True))

    def poisoned(loop: Loop, part: Part) -> dict[str, float]:
        bad = part == "validation" and next(looks)
        return honest(loop, part) | ({"retain": math.nan} if bad else {})

    monkeypatch.setattr(Loop, "measure", poisoned)
    run = Run(Path("runs/a"))
    unlearn(short(), tiny, run)
    assert run.manifest["stages"]["unlearn"]["stopped"] == "diverged"
    said = "diverged by step 4 (not finite on the validation captions); the weights of step 2"
    assert said in capsys.readouterr().err


def test_a_solution_that_is_not_finite_is_not_saved(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Projection.solve

    def poisoned(self: Projection, world: World) -> dict[str, Tensor]:
        return {name: tensor * math.nan for name, tensor in honest(self, world).items()}

    monkeypatch.setattr(Projection, "solve", poisoned)
    run = Run(Path("runs/a"))
    with pytest.raises(DivergedError, match="solution is not finite; nothing is saved"):
        unlearn(short(method="projection"), tiny, run)
    assert not (run.folder / "erased").exists()


def test_the_first_look_counts_against_what_was_left_before_the_first_step(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnchoredCLIPErase, "left", lambda method, student: 0.5)  # never a gain
    monkeypatch.setattr(
        AnchoredCLIPErase, "at", lambda method, stage: method if stage < 9 else None
    )
    run = Run(Path("runs/a"))
    unlearn(short(), tiny, run)
    log = [json.loads(line) for line in (run.folder / "train.jsonl").read_text().splitlines()]
    assert [(row["rolled_back"], row["stage"]) for row in log] == [(True, 0), (True, 1), (True, 2)]
    assert same(weights(run), load_file(tiny.model / "text_encoder" / "model.safetensors"))


def test_the_record_holds_the_methods_own_numbers_where_none_were_given(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(rate=None, retain_floor=None), tiny, run)
    settings = run.manifest["stages"]["unlearn"]["settings"]
    assert {name: settings[name] for name in OF_METHOD} == {
        "rate": AnchoredCLIPErase.rate, "steps": 6,
        "forget_threshold": AnchoredCLIPErase.forget_threshold,
        "retain_floor": AnchoredCLIPErase.retain_floor,
    }  # fmt: skip
    assert Settings(concepts=APPLE, method="lipschitz").steps == METHODS["lipschitz"].steps


def test_without_a_floor_nothing_is_rolled_back(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(method="ga", retain_floor=None, rate=1.0), tiny, run)
    log = [json.loads(line) for line in (run.folder / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 4, 6]
    assert not any(row["rolled_back"] for row in log) and log[-1]["validation_retain"] < 0.5


def test_the_image_tower_is_kept_where_it_was_trained(tiny: Models) -> None:
    for towers in ("text", "both"):
        run = Run(Path("runs") / towers)
        unlearn(short(method="cliperase", towers=towers), tiny, run)
        image_tower = run.folder / "erased" / "image_tower" / "model.safetensors"
        assert image_tower.exists() == (towers == "both")
    base = load_file(tiny.clips[0] / "model.safetensors")
    trained = load_file(image_tower)
    assert set(trained) == {n for n in base if n.startswith("vision_model.")}
    assert not same(trained, {n: base[n] for n in trained})


def test_a_damaged_checkpoint_is_named(tiny: Models) -> None:
    run = Run(Path("runs/a"))

    def stop(done: int, of: int, terms: dict[str, float]) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        unlearn(short(), tiny, run, stop)
    path = run.folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: damaged"):
        unlearn(short(), tiny, run)


def spoil(models: Models, tmp_path: Path, change: str) -> Models:
    """`models` with a damaged CLIP of its own."""
    import shutil

    folder = tmp_path / "spoilt"
    shutil.copytree(models.clips[0], folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif change == "garbage":
        file.write_bytes(b"no tensors at all")
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
    with pytest.raises(ModelError, match="spoilt") as caught:
        unlearn(short(), spoil(tiny, tmp_path, change), Run(Path("runs/a")))
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_text_encoder_of_another_width_is_refused_before_any_step(
    tiny: Models, tmp_path: Path
) -> None:
    import shutil

    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path / "wide"
    shutil.copytree(tiny.model, folder)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size = 64
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(ModelError, match="not the text encoder of --clip"):
        unlearn(short(), dataclasses.replace(tiny, model=folder), Run(Path("runs/a")))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "--method magic: unknown, near: .*; needs one of cliperase"),
        ({"steps": 0}, "--steps: needs at least 1, got 0"),
        ({"rate": float("nan")}, "--rate: needs a number above 0, got nan"),
        ({"rate": -1.0}, "--rate: needs a number above 0, got -1.0"),
        ({"retain_floor": 1.5}, "--retain-floor: needs 0 to 1, got 1.5"),
        ({"towers": "image"}, "--towers image: needs text or both"),
        ({"method": "clipperase"}, "--method clipperase: unknown, near: cliperase, "),
        ({"weights": {"forget_wait": 1.0}}, "--weight forget_wait: .*none; near: forget_weight"),
        ({"weights": {"forget_weight": "much"}}, "--weight forget_weight: needs a finite number"),
        (
            {"method": "lipschitz", "weights": {"copies": 0.0}},
            "--weight copies: needs at least 1, got 0",
        ),
        (
            {"method": "npo", "weights": {"temperature": 0.0}},
            "--weight temperature: needs more than 0, got 0",
        ),
        (
            {"method": "cliperase", "weights": {"consistency": "both"}},
            "--weight consistency: needs similarity or embedding, got both",
        ),
        ({"concepts": ()}, "--concept: needs at least one word"),
    ],
)
def test_a_setting_outside_what_is_allowed_is_named(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        short(**change)


def test_synonyms_belong_to_their_concept() -> None:
    assert concepts_from(["bicycle"], ["bike"])[0].synonyms == ("bike",)
    two = concepts_from(["bicycle", "couch"], ["couch=sofa"])
    assert [concept.synonyms for concept in two] == [(), ("sofa",)]
    with pytest.raises(SettingError, match="--synonym sofa: needs concept=synonym"):
        concepts_from(["bicycle", "couch"], ["sofa"])


def test_a_concept_in_no_caption_lists_the_near_words(tiny: Models) -> None:
    with pytest.raises(
        DataError, match=r"--concept aple: in no caption of the data; near words.*apple"
    ):
        unlearn(short(concepts=(Concept("aple"),)), tiny, Run(Path("runs/a")))
    assert not Path("runs").exists()


def test_the_python_words_are_the_commands_own() -> None:
    for word in ("unlearn", "generate", "score", "load"):
        assert callable(getattr(erase_sd, word))
