"""A CLIP or BLIP alone is unlearned on captions, classes and shards, evaluated, and saved whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_model import make_blip
from labelled_data import samples, write_class_folders, write_shard
from safetensors.torch import load_file
from transformers import BlipForImageTextRetrieval, CLIPModel

import erase_sd
from erase_sd.cli import main
from erase_sd.errors import EraseError, NotErasedError, SettingError
from erase_sd.methods.registry import METHODS
from erase_sd.models.presets import Models
from erase_sd.report import write
from erase_sd.run import Run
from erase_sd.unlearning.stage import CLIP_ONLY

FOR_CLIP = [name for name, method in METHODS.items() if "denoiser" not in method.needs]
FOR_BLIP = [name for name in FOR_CLIP if not CLIP_ONLY & METHODS[name].needs]
SHORT = {
    "steps": 2,
    "validate_every": 1,
    "forget_batch": 4,
    "retain_batch": 6,
    "max_residual": 99.0,
}
FASTER: dict[str, dict[str, Any]] = {
    "emmn": {"noise_steps": 2, "images": 4},
    "lipschitz": {"iterations": 2, "images": 4},
}


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    write_class_folders(tmp_path / "classes", {"apple": 12, "dog": 12, "chair": 12})
    return tmp_path / "classes"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"))


def unlearn(clip: Path, data: Path, **settings: Any) -> Run:
    return Run(erase_sd.unlearn("apple", clip=clip, data=data, **(SHORT | settings)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", [name for name in METHODS if name not in FOR_CLIP])
def test_methods_that_ask_a_unet_refuse_a_clip_alone(
    tiny: Models, classes: Path, method: str
) -> None:
    with pytest.raises(SettingError, match="needs a U-Net"):
        unlearn(tiny.clip_folder(0), classes, method=method)
    assert not Path("runs").exists()


@pytest.mark.parametrize("method", FOR_CLIP)
def test_every_method_unlearns_a_class_from_a_clip_alone(
    tiny: Models, classes: Path, method: str
) -> None:
    clip = tiny.clip_folder(0)
    run = unlearn(
        clip, classes, method=method, retain_floor=None, hyperparameters=FASTER.get(method, {})
    )
    before, after = weights(clip), weights(run.erased)
    CLIPModel.from_pretrained(run.erased)
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed <= {"text_model"}
    assert changed or method == "lipschitz"  # rolled back: nothing changes in two steps
    rows = {(m.measure, m.set, m.variant) for m in erase_sd.evaluate(run.folder).measurements}
    for variant in ("original", "erased"):
        for concept_set in ("forget", "retain"):
            assert ("zero_shot_prediction", concept_set, variant) in rows


def test_both_towers_of_a_clip_alone_are_saved_and_evaluated(tiny: Models, classes: Path) -> None:
    run = unlearn(tiny.clip_folder(0), classes, method="graddiff", towers="both")
    before, after = weights(tiny.clip_folder(0)), weights(run.erased)
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"text_model", "vision_model"}
    assert erase_sd.evaluate(run.folder).about["image_tower_erased"]


@pytest.mark.parametrize("method", FOR_BLIP)
@pytest.mark.parametrize("towers", ["text", "both"])
def test_methods_without_hidden_states_unlearn_a_blip(
    blip: Path, classes: Path, method: str, towers: str
) -> None:
    run = unlearn(
        blip, classes, method=method, towers=towers, hyperparameters=FASTER.get(method, {})
    )
    before, after = weights(blip), weights(run.erased)
    BlipForImageTextRetrieval.from_pretrained(run.erased)
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed <= {"text_encoder", *(["vision_model"] if towers == "both" else [])}
    assert not any("crossattention" in n for n in before if not before[n].equal(after[n]))
    record = erase_sd.evaluate(run.folder)
    assert {m.variant for m in record.measurements} == {"original", "erased"}
    assert not any(m.measure.startswith("drift") for m in record.measurements)


def test_blip_is_unlearned_on_captions_too(tiny: Models, blip: Path) -> None:
    assert tiny.data != "synth" and tiny.data
    run = unlearn(blip, tiny.data, method="ga")
    assert run.unlearned().encoders["clip"].held_out


def test_interrupted_run_of_a_blip_resumes_with_the_same_weights(blip: Path, classes: Path) -> None:
    class InterruptedTrainingError(Exception):
        pass

    def stop(done: int, total: int, note: str) -> None:
        if done == 2:
            raise InterruptedTrainingError

    whole = unlearn(blip, classes, method="graddiff", run="whole", steps=4)
    with pytest.raises(InterruptedTrainingError):
        unlearn(blip, classes, method="graddiff", run="broken", steps=4, progress=stop)
    broken = unlearn(blip, classes, method="graddiff", run="broken", steps=4)
    assert broken.unlearned().encoders["clip"].resumed_at == 1
    assert weights(whole.erased).keys() == weights(broken.erased).keys()
    for name, tensor in weights(whole.erased).items():
        assert tensor.equal(weights(broken.erased)[name]), name


def test_shards_are_unlearned_with_the_pairs_whose_words_mention_the_concept(
    tiny: Models, tmp_path: Path
) -> None:
    captions = ["a woman in a park", "a dog in the snow", "two women", "a red apple", "a man"]
    for number in range(3):
        texts = [f"{text} {time}" for time in ("today", "at night", "in rain") for text in captions]
        write_shard(tmp_path / f"cc12m/{number}.tar", samples(texts, 20 * number))
    folder = erase_sd.unlearn(
        "woman", clip=tiny.clip_folder(0), data=tmp_path / "cc12m", method="graddiff", **SHORT
    )
    record = erase_sd.evaluate(folder)
    assert (record.about["data"]["forget"], record.about["data"]["retain"]) == (4, 5)
    forget = {m.measure: m.n for m in record.measurements if m.set == "forget"}
    assert forget["zero_shot_prediction"] == 4  # of the class woman, not person


def test_run_of_its_own_folder_measures_held_out_images_only(tiny: Models, classes: Path) -> None:
    run = unlearn(tiny.clip_folder(0), classes, method="graddiff")
    assert erase_sd.evaluate(run.folder, images=classes) == erase_sd.evaluate(run.folder)


def test_clip_alone_is_explained_and_a_blip_says_that_it_is_not(
    tiny: Models, blip: Path, classes: Path
) -> None:
    run = unlearn(tiny.clip_folder(0), classes, method="graddiff")
    names = sorted(path.name for path in erase_sd.explain(run.folder))
    assert names == ["attention-image.png", "attention-text.png", "tsne.png"]
    assert "apple" in (write(run)).read_text()
    other = unlearn(blip, classes, method="graddiff", run="blip")
    with pytest.raises(EraseError, match="attention maps need a CLIP; this is a BLIP"):
        erase_sd.explain(other.folder)


def one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """What a failing command prints; exit status 1."""
    monkeypatch.setattr("sys.argv", ["erase-sd", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_stages_that_need_a_stable_diffusion_say_so_on_one_line(
    tiny: Models,
    classes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = unlearn(tiny.clip_folder(0), classes, method="graddiff")
    Path("apple.txt").write_text("an apple\n")
    capsys.readouterr()
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    for words in (
        ("generate", "--prompts", "apple.txt", "--run", "apple"),
        ("run", "--concept", "apple", "--clip", str(tiny.clip_folder(0)), "--data", str(classes)),
    ):
        line = one_line(monkeypatch, capsys, *words)
        assert line.endswith("is a CLIP or BLIP alone; needs a Stable Diffusion"), line
    line = one_line(monkeypatch, capsys, "export", "--run", "apple", "--to", "diffusers")
    assert line.endswith("a CLIP or BLIP alone is an ordinary folder of transformers")
    with pytest.raises(EraseError, match="has no text_encoder; it has clip"):
        erase_sd.load(run.folder)
    assert before == {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}


Change = Callable[[Path, Path], list[str]]


def foreign_blip(blip: Path, classes: Path) -> list[str]:
    config = blip / "config.json"
    kind = "BlipForConditionalGeneration"
    config.write_text(config.read_text().replace("BlipForImageTextRetrieval", kind))
    return ["--method", "ga"]


def no_captions(blip: Path, classes: Path) -> list[str]:
    for folder in classes.iterdir():
        shutil.rmtree(folder)
    write_shard(classes / "0.tar", {"1.jpg": b"", "2.jpg": b""})
    return ["--method", "ga"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda *_: [],
            "--method cliperase-anchored: needs the hidden states of a CLIP; a BLIP is",
        ),
        (
            lambda *_: ["--method", "few-shot"],
            "--method few-shot: needs a U-Net, and a CLIP or BLIP",
        ),
        (
            lambda *_: ["--method", "hirm"],
            "--method hirm: needs the hidden states of a CLIP; a BLIP is unlearned by "
            + ", ".join(FOR_BLIP),
        ),
        (
            foreign_blip,
            "is a BlipForConditionalGeneration, without contrastive towers; needs a Blip",
        ),
        (no_captions, "needs key.txt beside key.jpg"),
        (
            lambda *_: ["--method", "ga", "--concept", "pear"],
            "--concept pear: not a class of the da",
        ),
        (
            lambda *_: ["--method", "ga", "--data", "synth"],
            "is a CLIP or BLIP alone; needs a Stable Diffusion",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    blip: Path,
    classes: Path,
    change: Change,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = shutil.copytree(blip, tmp_path / "blip")
    options = change(own, classes)
    words = ["--concept", "apple"] if "--concept" not in options else []
    words += ["--data", str(classes)] if "--data" not in options else []
    line = one_line(monkeypatch, capsys, "unlearn", "--clip", str(own), *words, *options)
    assert message in line
    assert not Path("runs").exists()


def test_clip_alone_that_nothing_was_erased_from_fails_like_any_other(
    tiny: Models, classes: Path
) -> None:
    with pytest.raises(NotErasedError, match="apple not erased from clip"):
        unlearn(tiny.clip_folder(0), classes, method="ga", learning_rate=1e-9, max_residual=0.5)
