"""The exported LoRA is the best of its rank, and diffusers and PEFT read it without this package."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from erase_sd.errors import ModelError, SettingError
from erase_sd.models import erased, lora, lora_export
from erase_sd.models.checkpoint_keys import named_weights
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_text_encoder
from erase_sd.run import Run

IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def folder(tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export at rank 4; the random encoder is far from what a low rank can carry."""
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)
    return export(erased_run, tiny, "lora", Path("lora"), rank=4)


def hidden_states(encoder: Any) -> Tensor:
    with torch.no_grad():
        states: Tensor = encoder(IDS).last_hidden_state
    return states


def merged_by_hand(models: Models, file: Path, strength: float) -> Any:
    """The original encoder plus strength * alpha / rank * up @ down, from kohya's keys alone."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(Path(models.model) / "text_encoder")
    tensors = load_file(file)
    parameters = {
        "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_"): parameter
        for name, parameter in encoder.named_parameters()
    }
    for key, alpha in tensors.items():
        if key.endswith(".alpha"):
            layer = key.removesuffix(".alpha")
            up, down = tensors[f"{layer}.lora_up.weight"], tensors[f"{layer}.lora_down.weight"]
            with torch.no_grad():
                parameters[f"{layer}_weight"] += strength * alpha / len(down) * up @ down
    return encoder


def test_the_change_is_truncated_to_its_largest_singular_values() -> None:
    base = {"a.weight": torch.zeros(3, 3), "a.bias": torch.zeros(3), "norm.weight": torch.zeros(3)}
    erased = base | {"a.weight": torch.diag(torch.tensor([3.0, -2.0, 1.0]))}
    change = lora.low_rank_change(base, erased, rank=2)
    down, up = change.factors["a.weight"]
    assert torch.allclose(up @ down, torch.diag(torch.tensor([3.0, -2.0, 0.0])), atol=1e-6)
    assert change.weight_residual == round((1 / 14) ** 0.5, 4)
    assert change.left_out == {"bias": 0.0, "norm": 0.0, "embedding": 0.0}


def test_what_a_lora_cannot_carry_is_reported_as_its_share_of_the_change() -> None:
    names = ("fc.weight", "fc.bias", "layer_norm1.bias", "token_embedding.weight")
    sizes = dict(zip(names, (2.0, 1.0, 2.0, 4.0), strict=True))
    erased = {
        name: torch.tensor([[size, 0.0], [0.0, 0.0]] if "weight" in name else [size, 0.0])
        for name, size in sizes.items()
    }
    base = {name: torch.zeros_like(tensor) for name, tensor in erased.items()}
    change = lora.low_rank_change(base, erased, rank=2)
    assert change.left_out == {"bias": 0.2, "norm": 0.4, "embedding": 0.8}
    assert change.weight_residual == 0.0 and list(change.factors) == ["fc.weight"]


def test_strength_scales_the_change_and_leaves_the_original_as_it_was(tiny: Models) -> None:
    original = load_text_encoder(tiny.folder / "text_encoder")
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    factors = {name: (torch.ones(1, 32), torch.ones(64, 1))}
    before = original.state_dict()[name.removeprefix("text_model.")].clone()
    half = lora.with_strength("text_encoder", original, factors, 0.5).state_dict()
    assert torch.equal(half[name.removeprefix("text_model.")], before + 0.5)
    assert torch.equal(original.state_dict()[name.removeprefix("text_model.")], before)


def test_the_kohya_file_has_the_keys_that_comfyui_and_forge_look_up(folder: Path) -> None:
    tensors = load_file(folder / "apple-lora.safetensors")
    layer = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
    assert tensors[f"{layer}.lora_down.weight"].shape == (4, 32)
    assert tensors[f"{layer}.lora_up.weight"].shape == (32, 4)
    assert tensors[f"{layer}.alpha"] == 4
    assert len(tensors) == 3 * 2 * 6  # of six linear layers in each of two blocks
    with safe_open(folder / "apple-lora.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["ss_network_dim"]) == ("pt", "4")
    assert metadata["erase_sd.concepts"] == "apple"


def test_the_two_encoders_of_sdxl_are_te1_and_te2() -> None:
    weight = "text_model.encoder.layers.0.mlp.fc1.weight"
    change = lora.LowRankChange(
        rank=1, factors={weight: (torch.ones(1, 2), torch.ones(2, 1))},
        weight_residual=0.0, left_out={},
    )  # fmt: skip
    for name, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        keys = lora.kohya_tensors(name, True, change)
        assert f"{prefix}text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in keys


def test_a_file_for_diffusers_is_read_back_by_module_and_weight(folder: Path) -> None:
    factors = lora.read_factors(folder / "pytorch_lora_weights.safetensors")["text_encoder"]
    assert len(factors) == 12
    down, up = factors["text_model.encoder.layers.1.self_attn.out_proj.weight"]
    stored = load_file(folder / "apple-lora.safetensors")
    layer = "lora_te_text_model_encoder_layers_1_self_attn_out_proj"
    assert torch.equal(down, stored[f"{layer}.lora_down.weight"])
    assert torch.equal(up, stored[f"{layer}.lora_up.weight"])


def test_a_damaged_file_for_diffusers_is_one_line(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / "pytorch_lora_weights.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged or foreign"):
        lora.read_factors(cut)


@pytest.mark.parametrize("file", ["apple-lora.safetensors", "pytorch_lora_weights.safetensors"])
def test_diffusers_loads_both_layouts_with_a_strength(
    tiny: Models, folder: Path, any_peft: None, file: str
) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny.model)
    before = hidden_states(pipe.text_encoder)
    pipe.load_lora_weights(folder, weight_name=file, adapter_name="without-apple")
    for strength in (1.0, 0.5):
        pipe.set_adapters("without-apple", strength)
        by_hand = merged_by_hand(tiny, folder / "apple-lora.safetensors", strength)
        assert torch.allclose(hidden_states(pipe.text_encoder), hidden_states(by_hand), atol=1e-5)
        assert not torch.allclose(hidden_states(pipe.text_encoder), before, atol=1e-2)


@pytest.mark.parametrize("file", ["apple-lora.safetensors", "pytorch_lora_weights.safetensors"])
def test_diffusers_loads_a_lora_of_a_method_that_changes_no_attention(
    tiny: Models, erased_run: Run, any_peft: None, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Such as `projection`."""
    from diffusers import StableDiffusionPipeline

    original, record = load_text_encoder(Path(tiny.model) / "text_encoder"), erased_run.erasure()
    weights = {
        name: 1.5 * weight.detach() if "mlp.fc2.weight" in name else weight.detach()
        for name, weight in named_weights("text_encoder", original).items()
    }
    erased.save(
        erased_run.erased, {"text_encoder": weights}, tiny, concepts=record.concepts,
        settings=record.settings, origin=record.origin, held_out={},
    )  # fmt: skip
    pipe = StableDiffusionPipeline.from_pretrained(tiny.model)
    folder = export(erased_run, tiny, "lora", rank=64)
    downs = (t for n, t in load_file(folder / file).items() if ".lora_A." in n or "lora_down" in n)
    assert len(set(map(len, downs))) == 1  # earlier versions of diffusers scale all by the first
    pipe.load_lora_weights(folder, weight_name=file)
    changed = hidden_states(load_text_encoder(erased_run.erased))
    assert torch.allclose(hidden_states(pipe.text_encoder), changed, atol=1e-4)
    assert not torch.allclose(hidden_states(original), changed, atol=1e-2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_peft_opens_the_folder_of_an_encoder(tiny: Models, folder: Path) -> None:
    from peft import PeftModel
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(Path(tiny.model) / "text_encoder")
    model = PeftModel.from_pretrained(encoder, folder / "text_encoder")
    by_hand = merged_by_hand(tiny, folder / "apple-lora.safetensors", 1.0)
    assert torch.allclose(hidden_states(model), hidden_states(by_hand), atol=1e-5)


def test_a_lora_of_full_rank_carries_all_but_biases_norms_and_embeddings(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)
    out = export(erased_run, tiny, "lora", rank=64)
    quality = json.loads((out / "lora.json").read_text())["text_encoder"]
    assert quality["weight_residual"] < 1e-3
    assert quality["output_residual"] > 0.1 and quality["left_out"]["embedding"] > 0.1


def test_rank_and_residual_are_logged(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)
    with caplog.at_level(logging.INFO, "erase_sd"):
        out = export(erased_run, tiny, "lora", dtype="fp16")
    [message] = caplog.messages
    assert message.startswith("text_encoder: the LoRA of rank 32 leaves ")
    assert "biases, norms or embed" in message
    assert {t.dtype for n, t in load_file(out / "apple-lora.safetensors").items()
            if "alpha" not in n} == {torch.float16}  # fmt: skip


def test_a_lora_that_leaves_too_much_undone_is_refused(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 0.01)
    with pytest.raises(
        ModelError, match=r"rank 2: leaves \d+% of the erasure of text_enc"
    ) as caught:
        export(erased_run, tiny, "lora", Path("out"), rank=2)
    assert "\n" not in str(caught.value) and not Path("out").exists()
    with pytest.raises(SettingError, match="rank 0: needs a whole number from 1"):
        export(erased_run, tiny, "lora", Path("out"), rank=0)
    with pytest.raises(SettingError, match="rank 2: only a lora has a rank"):
        export(erased_run, tiny, "diffusers", Path("out"), rank=2)
