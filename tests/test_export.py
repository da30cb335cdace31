"""Exported encoders compute what the erased one computes, under the names that other programs read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_models import sdxl as sdxl
from torch import Tensor

from erase_sd.data.concept import Concept
from erase_sd.errors import EraseError, ModelError, RunError, SettingError
from erase_sd.files import write_json
from erase_sd.models import erased, lora_export
from erase_sd.models.checkpoint_keys import encoder_tensors, open_clip_names
from erase_sd.models.export import export, shareable
from erase_sd.models.model_card import card
from erase_sd.models.presets import Models, resolve
from erase_sd.run import Run
from erase_sd.run.measurements import Change, Rate, RateComparison, ScoresRecord
from erase_sd.run.records import EncoderResult, Origin

RATE = Rate(value=0.95, n=20, detected=19, low=0.76, high=0.99)
SCORES = ScoresRecord(
    threshold=0.25, detectors=(), by_class=(), sweep=(),
    rates=(
        RateComparison(
            run="apple", concept="apple", group="target", kind="plain", class_name=None,
            threshold=0.25, original=RATE, erased=dataclasses.replace(RATE, value=0.05, detected=1),
            change=Change(difference=-0.9, p_value=1e-3),
        ),
    ),
)  # fmt: skip
IDS = torch.tensor([[1, 2, 3, 4, 5]])


def hidden_states(encoder: Any) -> Tensor:
    with torch.no_grad():
        states: Tensor = encoder(IDS).last_hidden_state
    return states


def checkpoint(
    folder: Path, prefix: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    """A single-file checkpoint with a text encoder of zeros, and one other tensor."""
    content = {prefix + name: torch.zeros_like(t).half() for name, t in tensors.items()}
    content["model.diffusion_model.out.0.weight"] = torch.arange(4.0).half()
    save_file(content, folder / "base.safetensors", metadata)
    return folder / "base.safetensors"


def test_a_diffusers_folder_loads_to_the_same_hidden_states(tiny: Models, erased_run: Run) -> None:
    from transformers import CLIPTextModel

    out = export(erased_run, tiny, "diffusers")
    assert out == erased_run.folder / "export" / "diffusers"
    exported = CLIPTextModel.from_pretrained(out / "text_encoder")
    expected = hidden_states(erased.load(erased_run.folder))
    assert torch.equal(hidden_states(exported), expected)
    assert torch.equal(hidden_states(erased.load(out)), expected)  # by hashes of its own
    (out / "text_encoder" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="damaged, not the weights that were saved"):
        erased.load(out)


def test_a_diffusers_folder_has_the_key_names_of_hub_repositories(
    tiny: Models, erased_run: Run
) -> None:
    out = export(erased_run, tiny, "diffusers", Path("out"))
    keys = load_file(out / "text_encoder" / "model.safetensors").keys()
    assert "text_model.embeddings.token_embedding.weight" in keys
    assert "text_model.encoder.layers.1.self_attn.q_proj.weight" in keys
    assert "text_model.final_layer_norm.bias" in keys
    assert all(key.startswith("text_model.") for key in keys)


def test_a_comfyui_file_has_the_same_weights_in_half_precision(
    tiny: Models, erased_run: Run
) -> None:
    out = export(erased_run, tiny, "comfyui")
    file = load_file(out / "clip_32.safetensors")
    full = encoder_tensors(erased_run.erased)
    assert file.keys() == full.keys()
    assert all(torch.equal(file[name], full[name].half()) for name in full)


@pytest.mark.parametrize("dtype", [None, "fp32"])
def test_a_single_file_checkpoint_changes_in_its_text_encoder_alone(
    tiny: Models, erased_run: Run, tmp_path: Path, dtype: Any
) -> None:
    prefix = "cond_stage_model.transformer."
    base = checkpoint(tmp_path, prefix, encoder_tensors(erased_run.erased))
    out = export(erased_run, tiny, "a1111", base=base, dtype=dtype)
    exported = load_file(out / "base-without-apple.safetensors")
    other = exported["model.diffusion_model.out.0.weight"]
    assert other.dtype == torch.float16 and other.tolist() == [0, 1, 2, 3]
    assert exported.keys() == load_file(base).keys()
    for name, tensor in encoder_tensors(erased_run.erased).items():
        assert torch.equal(exported[prefix + name], tensor if dtype else tensor.half())


def test_diffusers_converts_open_clip_names_back_to_the_same_encoder(erased_run: Run) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_pretrained(erased_run.erased)
    model = CLIPTextModelWithProjection(config).eval()
    ours = encoder_tensors(erased_run.erased)
    model.load_state_dict(ours, strict=False)
    ours["text_projection.weight"] = model.text_projection.weight.detach()
    prefix = "conditioner.embedders.1.model."
    theirs = convert_open_clip_checkpoint(
        model, {prefix + n: t for n, t in open_clip_names(ours).items()}, prefix=prefix
    )
    converted = CLIPTextModelWithProjection(config).eval()
    missing, extra = converted.load_state_dict(theirs, strict=False)
    assert not missing and not extra
    assert torch.equal(hidden_states(converted), hidden_states(model))
    assert torch.equal(converted.text_projection.weight, model.text_projection.weight)


def test_a_hub_folder_needs_scores_and_has_a_model_card(tiny: Models, erased_run: Run) -> None:
    (erased_run.folder / "scores.md").write_text("of an interrupted score\n")
    with pytest.raises(RunError, match="score first"):
        export(erased_run, tiny, "hub-folder")
    scored(erased_run)
    (erased_run.folder / "scores.md").rename("kept.md")
    with pytest.raises(RunError, match="score first"):
        export(erased_run, tiny, "hub-folder")
    Path("kept.md").rename(erased_run.folder / "scores.md")
    out = export(erased_run, tiny, "hub-folder")
    assert (out / "text_encoder" / "model.safetensors").is_file()
    text = (out / "README.md").read_text()
    assert "| apple | 3 % |" in text
    assert '"method": "cliperase-anchored"' in text
    assert 'CLIPTextModel.from_pretrained(".", subfolder="text_encoder")' in text
    assert tiny.fingerprint() in text
    assert "http" not in text


@pytest.mark.parametrize("name", ["apple", "apples", "snow", "scissors", "New York", "Van Gogh"])
def test_the_snippet_of_a_model_card_asks_for_the_concept_without_guessing_its_grammar(
    tiny: Models, erased_run: Run, name: str
) -> None:
    record = dataclasses.replace(erased_run.erasure(), concepts=(Concept(name),))
    assert f'pipe("{name}").images[0]' in card(record, tiny, "")


@pytest.mark.parametrize(
    ("models", "licence", "base_model", "title"),
    [
        (resolve(), "agpl-3.0", None, "the miniature world of erase-sd"),
        (resolve("sd15"), "creativeml-openrail-m", resolve("sd15").model, "{}"),
        (resolve("sdxl", model="own/xl"), "other", "own/xl", "{}"),
    ],
    ids=["mini", "sd15", "own"],
)
def test_a_model_card_names_the_licence_and_the_base_of_its_model(
    tiny: Models,
    erased_run: Run,
    models: Models,
    licence: str,
    base_model: str | None,
    title: str,
) -> None:
    models.__dict__["folder"] = tiny.folder  # as if fetched
    record = erased_run.erasure()
    base = dataclasses.replace(record.base, model=str(models.model))
    own = shareable(dataclasses.replace(record, base=base), models)
    assert own.base.model == (base_model or Path(str(models.model)).name)
    text = card(dataclasses.replace(record, base=base), models, "")
    header = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    fields = {key: json.loads(value) for key, value in header.items()}
    assert (fields["license"], fields.get("base_model")) == (licence, base_model)
    assert f"The text encoder of {title.format(models.model)}, unlearned" in text
    assert fields["pipeline_tag"] == "text-to-image" and fields["library_name"] == "diffusers"
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert f'base = "{base_model}"' in code if base_model else "resolve().folder" in code


@pytest.mark.parametrize(
    ("to", "base", "message"),
    [
        (
            "onnx",
            None,
            "to onnx: unknown; needs one of diffusers, comfyui, a1111, lora, hub-folder",
        ),
        ("a1111", None, "base: a1111 needs a single-file checkpoint"),
        ("diffusers", Path("base.safetensors"), "no other format takes one"),
        ("a1111", Path("missing.safetensors"), "base missing.safetensors: not a readable"),
        ("a1111", Path("apple.txt"), r"base apple.txt: not a readable \.safetensors"),
    ],
)
def test_an_impossible_export_is_one_line_and_writes_nothing(
    tiny: Models, erased_run: Run, to: Any, base: Path | None, message: str
) -> None:
    Path("apple.txt").write_text("no tensors")
    with pytest.raises(EraseError, match=message) as caught:
        export(erased_run, tiny, to, Path("out"), base)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_a_checkpoint_of_another_kind_or_width_is_refused(
    tiny: Models, erased_run: Run, tmp_path: Path
) -> None:
    tensors = encoder_tensors(erased_run.erased)
    other = checkpoint(tmp_path, "somewhere.else.", tensors)
    with pytest.raises(ModelError, match="has no text_encoder of this kind of model"):
        export(erased_run, tiny, "a1111", base=other)
    narrow = {n: t[..., :-1].contiguous() for n, t in tensors.items()}
    other = checkpoint(tmp_path, "cond_stage_model.transformer.", narrow)
    with pytest.raises(ModelError, match="the erased one is"):
        export(erased_run, tiny, "a1111", base=other)
    last = "text_model.final_layer_norm.bias"
    other = checkpoint(
        tmp_path, "cond_stage_model.transformer.", {n: t for n, t in tensors.items() if n != last}
    )
    with pytest.raises(ModelError, match=rf"{last} is missing, the erased one is \(32,\)"):
        export(erased_run, tiny, "a1111", base=other)
    exports = erased_run.folder / "export"
    assert not exports.exists() or not list(exports.iterdir())


def test_only_an_earlier_export_is_overwritten(tiny: Models, erased_run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    with pytest.raises(SettingError, match="out mine: exists and is not an export"):
        export(erased_run, tiny, "diffusers", Path("mine"))
    assert Path("mine/notes.txt").read_text() == "keep me"
    Path(".out.x.partial").mkdir()  # of a killed export
    first = export(erased_run, tiny, "diffusers", Path("out"))
    assert not Path(".out.x.partial").exists()
    assert export(erased_run, tiny, "diffusers", Path("out")) == first


def test_an_export_never_takes_the_place_of_a_runs_erased_weights(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(erased_run.folder.resolve())
    own = "is the folder of a run's erased weights, or in it"
    Path("link").symlink_to(run.erased)
    elsewhere = Run(Path("runs/elsewhere"))
    shutil.copytree(run.folder, elsewhere.folder)
    elsewhere.erased.rename("weights")
    elsewhere.erased.symlink_to(Path("weights").resolve())
    linked = (Path("link"), elsewhere.erased, elsewhere.erased / "text_encoder")
    for out in (erased_run.erased, run.erased / "text_encoder", *linked):
        with pytest.raises(SettingError, match=f"out {out}: {own}"):
            export(run, tiny, "diffusers", out)
    first = export(run, tiny, "diffusers", Path("first")).resolve()
    for place in (run.erased, first / "text_encoder", first):
        monkeypatch.chdir(place)
        for out in (Path(), Path("..")):
            with pytest.raises(SettingError, match=f"out {out}: needs the name of a folder"):
                export(run, tiny, "diffusers", out)
    erased.check(run.erased)


def scored(run: Run) -> None:
    """Completes the run as far as an export can tell."""
    for stage in ("generate", "score"):
        with run.stage(stage, {}):  # type: ignore[arg-type]
            pass
    (run.folder / "scores.md").write_text("| apple | 3 % |\n")
    write_json(run.folder / "scores.json", dataclasses.asdict(SCORES))


@pytest.mark.parametrize("to", ["diffusers", "comfyui", "lora", "a1111", "hub-folder"])
def test_an_export_is_readable_by_all_and_names_no_folder_of_this_machine(
    tiny: Models, erased_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any
) -> None:
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)
    scored(erased_run)
    tensors = encoder_tensors(erased_run.erased)
    base = checkpoint(tmp_path, "cond_stage_model.transformer.", tensors) if to == "a1111" else None
    out = export(erased_run, tiny, to, base=base)
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
        if path.is_file():
            content = path.read_bytes()
            assert str(Path(tiny.model).parent).encode() not in content, path
            assert str(tmp_path).encode() not in content, path
    assert json.loads((out / "erase.json").read_text())["base"]["model"] == "sd"


@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("diffusers", "text_encoder/model.safetensors"),
        ("comfyui", "clip_32.safetensors"),
        ("lora", "apple-red-chair-lora.safetensors"),
        ("lora", "pytorch_lora_weights.safetensors"),
        ("lora", "text_encoder/adapter_model.safetensors"),
        ("a1111", "base-without-apple-red-chair.safetensors"),
    ],
)
def test_every_safetensors_file_says_where_it_comes_from(
    tiny: Models,
    erased_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: Any,
    file: str,
) -> None:
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)
    record = erased_run.erasure()
    base = dataclasses.replace(record.base, revision="v1")
    both = (Concept("apple"), Concept("red chair"))
    write_json(
        erased_run.erased / "erase.json",
        dataclasses.asdict(dataclasses.replace(record, concepts=both, base=base)),
    )
    tensors, others = encoder_tensors(erased_run.erased), {"modelspec.title": "mine"}
    before = others | {"erase_sd.concepts": "dog", "modelspec.hash_sha256": "0x1"}
    checkpoint(tmp_path, "cond_stage_model.transformer.", tensors, before)
    out = export(
        erased_run, tiny, to, base=tmp_path / "base.safetensors" if to == "a1111" else None
    )
    with safe_open(out / file, framework="pt") as opened:
        metadata = opened.metadata()
    if to == "a1111":
        assert metadata.items() >= others.items() and "modelspec.hash_sha256" not in metadata
    expected = {
        "format": "pt",
        "erase_sd.concepts": "apple, red chair",
        "erase_sd.method": "cliperase-anchored",
        "erase_sd.base": "sd",
        "erase_sd.base_revision": "v1",
        "erase_sd.base_fingerprint": tiny.fingerprint(),
        "erase_sd.version": record.versions["erase-sd"],
    }
    assert metadata.items() >= expected.items()


def test_an_export_needs_the_model_of_the_run_and_the_run_to_itself(
    tiny: Models, sdxl: Models, erased_run: Run
) -> None:
    with pytest.raises(RunError, match="unlearned from"):
        export(erased_run, sdxl, "diffusers")
    with erased_run.lock(), pytest.raises(RunError, match="in use by process"):
        export(erased_run, tiny, "diffusers")


def test_the_precision_of_an_export_can_be_chosen(tiny: Models, erased_run: Run) -> None:
    from transformers import CLIPTextModel

    out = export(erased_run, tiny, "diffusers", dtype="fp16")
    assert CLIPTextModel.from_pretrained(out / "text_encoder").dtype == torch.float16
    assert json.loads((out / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    out = export(erased_run, tiny, "comfyui", dtype="fp32")
    assert {t.dtype for t in load_file(out / "clip_32.safetensors").values()} == {torch.float32}


def test_a_width_that_no_program_has_a_slot_for_is_said(
    tiny: Models, erased_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    export(erased_run, tiny, "comfyui")
    assert caplog.messages == [
        "clip_32.safetensors: no text encoder slot takes a width of 32; ComfyUI has slots for 768 "
        "(clip_l), 1024 (clip_h), 1280 (clip_g)"
    ]


def test_two_encoders_of_one_width_have_a_file_each(sdxl: Models) -> None:
    run, concepts = Run(Path("runs/apple")), [Concept("apple")]
    origin = Origin(model=sdxl.fingerprint(), clip=("0", "0"), data="0")
    weights = {
        name: load_file(sdxl.folder / name / "model.safetensors")
        for name in ("text_encoder", "text_encoder_2")
    }
    entry = {"concepts": [{"name": "apple"}], "origin": dataclasses.asdict(origin)}
    with run.stage("unlearn", {}, **entry):
        erased.save(
            run.erased, weights, sdxl, concepts=concepts, settings={}, origin=origin, held_out={}
        )
    out = export(run, sdxl, "comfyui", dtype="fp32")
    files = {"text_encoder": "clip_32", "text_encoder_2": "clip_32-text_encoder_2"}
    assert {path.stem for path in out.glob("*.safetensors")} == set(files.values())
    for name, stem in files.items():
        exported, own = load_file(out / f"{stem}.safetensors"), encoder_tensors(run.erased / name)
        assert exported.keys() == own.keys() and all(torch.equal(exported[n], own[n]) for n in own)


def test_an_export_names_the_encoder_that_still_knows_the_concept(
    tiny: Models, erased_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    scored(erased_run)
    stages = erased_run.stages
    assert stages.unlearn is not None
    encoders = {
        name: EncoderResult(
            steps=20, stopped="steps", resumed_at=0, batch_sizes=(2, 2),
            held_out={"residual_concept_similarity": residual},
        )
        for name, residual in (("text_encoder", 0.1), ("text_encoder_2", 0.97))
    }  # fmt: skip
    unlearned = dataclasses.replace(
        stages.unlearn, encoders=encoders, settings={"max_residual": 0.5}
    )
    erased_run.update(stages=dataclasses.replace(stages, unlearn=unlearned))
    out = export(erased_run, tiny, "hub-folder")
    assert caplog.messages == [
        "runs/apple: apple not erased from text_encoder_2 (residual concept similarity 0.97); "
        "exported all the same"
    ]
    assert "how far that succeeded is measured below" in (out / "README.md").read_text()


def test_the_snippet_of_a_model_card_runs_as_it_stands(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(erased_run)
    out = export(erased_run, tiny, "hub-folder")
    text = (out / "README.md").read_text()
    header = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    [model] = json.loads(header["model-index"])
    assert [metric["value"] for metric in model["results"][0]["metrics"]] == [95.0, 5.0]
    (out / "sd").symlink_to(tiny.model)  # the base model, by the name that the card gives it
    monkeypatch.chdir(out)
    exec(compile(text.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    assert Path("without.png").is_file()
