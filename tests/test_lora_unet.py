"""A U-Net's change as a LoRA: alone and with a text encoder's, opened by diffusers and PEFT alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_models import sdxl as sdxl
from test_single_file import own as own
from test_unet_erasure import CONV, changed_unet, erase
from torch import Tensor

from erase_sd.data.concept import Concept
from erase_sd.errors import ModelError
from erase_sd.files import write_json
from erase_sd.models import lora, lora_export, lora_quality
from erase_sd.models.checkpoint_keys import named_weights
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.models.unet import UNET, load_unet

LAYERS = (
    "conv_in", "time_embedding.linear_1", "down_blocks.1.attentions.0.proj_in",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "up_blocks.0.resnets.1.conv1",
    "up_blocks.0.upsamplers.0.conv",
)  # fmt: skip
"""Linear layers and convolutions of every kind."""
FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"


def changed(models: Models, size: float = 0.05) -> dict[str, Tensor]:
    """The U-Net's tensors, those of `LAYERS` changed at random, at most at rank 3."""
    torch.manual_seed(0)
    tensors = load_unet(models.folder / UNET).state_dict()
    for layer in LAYERS:
        weight = tensors[f"{layer}.weight"]
        rows = weight.flatten(1)
        change = torch.randn(len(rows), 3) @ torch.randn(3, rows.shape[1])
        tensors[f"{layer}.weight"] = weight + size * change.view_as(weight)
    return tensors


def exported(models: Models, out: str = "lora", both: bool = False, **changes: Any) -> Path:
    """An export of an erasure whose U-Net differs by a change that the LoRA can carry."""
    run = erase(models, both=both, weights=changed(models))
    return export(run, models, "lora", Path(out), **changes)


def test_a_lora_carries_a_change_of_low_rank_of_linear_layers_and_convolutions(
    tiny: Models,
) -> None:
    out = exported(tiny)
    factors = lora.read_factors(out / "pytorch_lora_weights.safetensors")[UNET]
    assert set(factors) == {f"{layer}.weight" for layer in LAYERS}
    original = load_unet(tiny.folder / UNET)
    merged = lora.with_strength(UNET, original, factors).state_dict()
    for name, tensor in changed(tiny).items():
        assert torch.allclose(merged[name], tensor, atol=1e-5), name
    quality = json.loads((out / "lora.json").read_text())
    assert list(quality) == [UNET] and quality[UNET]["output_residual"] < 1e-3


def test_the_residual_is_that_of_the_predictions(tiny: Models) -> None:
    folder = tiny.folder / UNET
    original, erased = load_unet(folder), load_unet(folder)
    erased.load_state_dict(changed(tiny))
    for unet, residual in ((original, 1.0), (erased, 0.0)):
        assert lora_quality.prediction_residual(tiny.folder, erased, unet, ["apple"]) == residual


def test_a_lora_that_leaves_too_much_of_a_unet_undone_is_refused(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 0.01)
    with pytest.raises(ModelError, match=r"rank 1: leaves \d+% of the erasure of unet undone"):
        exported(tiny, rank=1)
    assert not Path("lora").exists()


@pytest.mark.parametrize("file", ["apple-lora.safetensors", "pytorch_lora_weights.safetensors"])
def test_diffusers_puts_the_change_of_a_unet_into_its_pipeline(
    tiny: Models, any_peft: None, file: str
) -> None:
    from diffusers import StableDiffusionPipeline

    out = exported(tiny)
    pipe = StableDiffusionPipeline.from_pretrained(tiny.model)
    pipe.load_lora_weights(out, weight_name=file)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused, wanted = pipe.unet.state_dict(), changed(tiny)
    assert fused.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(fused[name], wanted[name], atol=1e-4), name


@pytest.mark.parametrize("own", ["sd1"], indirect=True)
@pytest.mark.parametrize("file", ["apple-lora.safetensors", "pytorch_lora_weights.safetensors"])
def test_layers_narrower_than_the_rank_keep_their_scale_in_diffusers(
    tiny: Models, own: Any, any_peft: None, tmp_path: Path, file: str
) -> None:
    own.save_pretrained(tmp_path / "sd")
    models, wanted = dataclasses.replace(tiny, model=tmp_path / "sd"), own.unet.state_dict()
    for name in wanted:
        if name.endswith("attn2.to_k.weight"):
            wanted[name] = wanted[name] + torch.randn_like(wanted[name])
    assert {len(t) for n, t in wanted.items() if n.endswith("attn2.to_k.weight")} == {8, 16}
    out = export(erase(models, weights=wanted), models, "lora", Path("lora"), rank=20)
    pipe = type(own).from_pretrained(models.folder)
    pipe.load_lora_weights(out, weight_name=file)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.unet.state_dict()
    for name in wanted:
        assert torch.allclose(fused[name], wanted[name], atol=1e-4), name


def test_an_erasure_of_both_is_one_lora(
    tiny: Models, any_peft: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)  # the random encoder's change is wide
    out = exported(tiny, both=True)
    tensors = load_file(out / "apple-lora.safetensors")
    for prefix in ("lora_te_text_model_", "lora_unet_"):
        assert any(key.startswith(prefix) for key in tensors)
    assert list(json.loads((out / "lora.json").read_text())) == ["text_encoder", UNET]
    pipe = StableDiffusionPipeline.from_pretrained(tiny.model)
    pipe.load_lora_weights(out, weight_name="apple-lora.safetensors", adapter_name="without-apple")
    assert pipe.get_list_adapters() == {
        UNET: ["without-apple"], "text_encoder": ["without-apple"]
    }  # fmt: skip


def test_two_text_encoders_and_a_unet_have_their_own_keys_and_are_measured_on_all_concepts(
    sdxl: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []

    def of_states(original: Any, erased: Any, lora: Any, tokenizer: Any, concepts: Any) -> float:
        before, after = (named_weights("", module)[FC1] for module in (original, erased))
        assert torch.equal(1.5 * before, after)
        measured.append((tokenizer.pad_token, concepts))
        return 0.25

    def of_predictions(model: Path, erased: Any, lora: Any, concepts: Any) -> float:
        assert torch.equal(erased.state_dict()[CONV], changed_unet(model)[CONV])
        measured.append(concepts)
        return 0.125

    monkeypatch.setattr(lora_export, "hidden_residual", of_states)
    monkeypatch.setattr(lora_export, "prediction_residual", of_predictions)
    run = erase(sdxl, both=True)
    names = ["apple", "chair"]
    concepts = tuple(map(Concept, names))
    record = dataclasses.replace(run.erasure(), concepts=concepts)
    write_json(run.erased / "erase.json", dataclasses.asdict(record))
    out = export(run, sdxl, "lora", rank=2)
    assert measured == [("<|endoftext|>", names), ("!", names), names]
    keys = {
        key.partition("_text_model")[0][:9]
        for key in load_file(out / "apple-chair-lora.safetensors")
    }
    assert keys == {"lora_te1", "lora_te2", "lora_unet"}
    names = ["text_encoder", "text_encoder_2", UNET]
    factors = lora.read_factors(out / "pytorch_lora_weights.safetensors")
    assert list(factors) == names
    qualities = json.loads((out / "lora.json").read_text())
    assert [quality["output_residual"] for quality in qualities.values()] == [0.25, 0.25, 0.125]
    assert all(0 < quality["weight_residual"] < 1 for quality in qualities.values())
    for name in names:
        assert list(qualities) == names and (out / name / "adapter_model.safetensors").is_file()
    with safe_open(out / "apple-chair-lora.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_alpha"] == metadata["ss_network_dim"] == "2"


def test_peft_and_diffusers_open_it_without_this_package(tiny: Models) -> None:
    out = exported(tiny)
    torch.save(changed(tiny), "wanted.pt")
    code = (
        "import sys, torch\n"
        "from diffusers import StableDiffusionPipeline, UNet2DConditionModel\n"
        "from peft import PeftModel\n"
        "base, lora = sys.argv[1:]\n"
        "unet = UNet2DConditionModel.from_pretrained(base, subfolder='unet')\n"
        "merged = PeftModel.from_pretrained(unet, lora + '/unet').merge_and_unload().state_dict()\n"
        "pipe = StableDiffusionPipeline.from_pretrained(base)\n"
        "pipe.load_lora_weights(lora, weight_name='apple-lora.safetensors')\n"
        "pipe.fuse_lora()\n"
        "pipe.unload_lora_weights()\n"
        "wanted = torch.load('wanted.pt')\n"
        "for own in (merged, pipe.unet.state_dict()):\n"
        "    assert all(torch.allclose(own[n], t, atol=1e-4) for n, t in wanted.items())\n"
        "assert not any(name.startswith('erase_sd') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny.model), str(out)], check=True)
