"""Exported encoders say what the erased one says, in the names that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import erase_sd
from erase_sd.data.concept import Concept
from erase_sd.errors import EraseError, ModelError, RunError, SettingError
from erase_sd.models.export import export, hugging_face, open_clip
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

QUICK: dict[str, Any] = {
    "concepts": (Concept("apple"),), "steps": 2, "validate_every": 2, "forget_batch": 8,
    "retain_batch": 8, "rate": 1e-2, "retain_floor": 0.0,
}  # fmt: skip
IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def run(tiny: Models) -> Run:
    run = Run(Path("runs/apple"))
    unlearn(Settings(**QUICK), tiny, run)
    return run


def states(encoder: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = encoder(IDS).last_hidden_state
    return found


def test_a_diffusers_folder_reads_back_to_the_same_states(tiny: Models, run: Run) -> None:
    from transformers import CLIPTextModel

    out = export(run, tiny, "diffusers")
    back = CLIPTextModel.from_pretrained(out / "text_encoder")
    assert torch.equal(states(back), states(erase_sd.load(run.folder)))


def test_its_keys_are_those_of_hub_repositories(tiny: Models, run: Run) -> None:
    out = export(run, tiny, "diffusers", Path("out"))
    keys = load_file(out / "text_encoder" / "model.safetensors").keys()
    assert "text_model.embeddings.token_embedding.weight" in keys
    assert "text_model.encoder.layers.1.self_attn.q_proj.weight" in keys
    assert "text_model.final_layer_norm.bias" in keys
    assert all(key.startswith("text_model.") for key in keys)


def test_a_comfyui_file_holds_the_same_weights_in_half_precision(tiny: Models, run: Run) -> None:
    out = export(run, tiny, "comfyui")
    file = load_file(out / "clip_32.safetensors")
    full = hugging_face(run.folder / "erased")
    assert file.keys() == full.keys()
    assert all(torch.equal(file[name], full[name].half()) for name in full)


def single_file(folder: Path, prefix: str, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint of another text encoder and something else."""
    everything = {prefix + name: torch.zeros_like(t).half() for name, t in tensors.items()}
    everything["model.diffusion_model.out.0.weight"] = torch.arange(4.0)
    save_file(everything, folder / "base.safetensors", metadata={"format": "pt"})
    return folder / "base.safetensors"


def test_a_single_file_gets_the_encoder_and_keeps_all_else(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    prefix = "cond_stage_model.transformer."
    base = single_file(tmp_path, prefix, hugging_face(run.folder / "erased"))
    out = export(run, tiny, "a1111", base=base)
    made = load_file(out / "base-without-apple.safetensors")
    assert torch.equal(made["model.diffusion_model.out.0.weight"], torch.arange(4.0))
    assert made.keys() == load_file(base).keys()
    for name, tensor in hugging_face(run.folder / "erased").items():
        assert torch.equal(made[prefix + name], tensor.half())


def test_open_clips_names_go_back_to_the_same_states_by_diffusers_own_converter(
    tiny: Models, run: Run
) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    erased = run.folder / "erased"
    config = CLIPTextConfig.from_pretrained(erased)
    model = CLIPTextModelWithProjection(config).eval()
    ours = hugging_face(erased)
    model.load_state_dict(ours, strict=False)
    ours["text_projection.weight"] = model.text_projection.weight.detach()
    prefix = "conditioner.embedders.1.model."
    theirs = convert_open_clip_checkpoint(
        model, {prefix + n: t for n, t in open_clip(ours).items()}, prefix=prefix
    )
    fresh = CLIPTextModelWithProjection(config).eval()
    missing, extra = fresh.load_state_dict(theirs, strict=False)
    assert not missing and not extra
    assert torch.equal(states(fresh), states(model))
    assert torch.equal(fresh.text_projection.weight, model.text_projection.weight)


def test_a_hub_folder_has_a_card_with_scores_settings_base_licence_and_snippet(
    tiny: Models, run: Run
) -> None:
    with pytest.raises(RunError, match="score first"):
        export(run, tiny, "hub-folder")
    Path("apple.txt").write_text("an apple next to a dog\n")
    erase_sd.generate("apple.txt", steps=1, model=tiny.model)
    tables = erase_sd.score(run.folder, detector=tiny.detector)
    out = export(run, tiny, "hub-folder")
    card = (out / "README.md").read_text()
    header = dict(line.split(": ", 1) for line in card.split("---")[1].strip().splitlines())
    assert json.loads(header["license"]) == "agpl-3.0"
    assert f"| apple | apple | {tables.rows[0].n} |" in card
    assert '"method": "cliperase-anchored"' in card
    assert 'CLIPTextModel.from_pretrained("this-folder", subfolder="text_encoder")' in card
    assert run.manifest["stages"]["unlearn"]["settings"]["model"] in card


@pytest.mark.parametrize(
    ("to", "base", "says"),
    [
        ("onnx", None, "--to onnx: unknown; needs one of diffusers, comfyui, a1111, hub-folder"),
        ("a1111", None, "a1111 needs one"),
        ("diffusers", Path("base.safetensors"), "no other does"),
        ("a1111", Path("missing.safetensors"), "no readable .safetensors"),
        ("a1111", Path("apple.txt"), "no readable .safetensors"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    tiny: Models, run: Run, to: str, base: Path | None, says: str
) -> None:
    Path("apple.txt").write_text("no tensors")
    with pytest.raises(EraseError, match=says) as caught:
        export(run, tiny, to, Path("out"), base)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_a_base_of_another_kind_or_width_is_named(tiny: Models, run: Run, tmp_path: Path) -> None:
    other = single_file(tmp_path, "somewhere.else.", hugging_face(run.folder / "erased"))
    with pytest.raises(ModelError, match="holds no text_encoder of this kind"):
        export(run, tiny, "a1111", base=other)
    narrow = {n: t[..., :-1].contiguous() for n, t in hugging_face(run.folder / "erased").items()}
    with pytest.raises(ModelError, match="the erased encoder has"):
        export(
            run, tiny, "a1111", base=single_file(tmp_path, "cond_stage_model.transformer.", narrow)
        )
    assert not (run.folder / "export").exists() or not list((run.folder / "export").iterdir())


def test_a_folder_that_is_no_export_is_left_alone(tiny: Models, run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    with pytest.raises(SettingError, match="is there already, and no export"):
        export(run, tiny, "diffusers", Path("mine"))
    assert Path("mine/notes.txt").read_text() == "keep me"
    first = export(run, tiny, "diffusers", Path("out"))
    assert export(run, tiny, "diffusers", Path("out")) == first
