"""A checkpoint in the layout of the original Stable Diffusion becomes the diffusers folder it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from erase_sd.models import pipeline, sampling, single_file
from erase_sd.models.checkpoint_keys import hub_names, open_clip_names
from erase_sd.models.presets import Models

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}  # fmt: skip
for i in range(4):
    for j in range(3):
        UNET[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{3 * i + j + 1}.0."
        UNET[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{3 * i + j + 1}.1."
        UNET[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{3 * i + j}.0."
        UNET[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{3 * i + j}.1."
    UNET[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{3 * (i + 1)}.0.op."
    UNET[f"up_blocks.{i}.upsamplers.0."] = f"output_blocks.{3 * i + 2}.2."
UNET |= {"add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2."}
VAE = {
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
for i in range(4):
    VAE[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
    VAE[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{3 - i}.upsample"
    for j in range(3):
        VAE[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
        VAE[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{3 - i}.block.{j}"


def encoder_tensors(pipe: Any) -> dict[str, Tensor]:
    """The text encoders by the names of each release's own checkpoint."""
    first = hub_names(pipe.text_encoder.state_dict())
    if hasattr(pipe, "text_encoder_2"):
        second = open_clip_names(hub_names(pipe.text_encoder_2.state_dict()))
        return {f"conditioner.embedders.0.transformer.{n}": t for n, t in first.items()} | {
            f"conditioner.embedders.1.model.{n}": t for n, t in second.items()
        }
    if pipe.unet.config.use_linear_projection:  # Stable Diffusion 2
        return {f"cond_stage_model.model.{n}": t for n, t in open_clip_names(first).items()}
    return {f"cond_stage_model.transformer.{n}": t for n, t in first.items()}


def checkpoint_of(pipe: Any) -> dict[str, Tensor]:
    """The pipeline's weights as CompVis' own code names them."""
    tensors = {}
    weights = pipe.unet.state_dict()
    for name, tensor in weights.items():
        start = max((s for s in UNET if name.startswith(s)), key=len)
        rest = name.removeprefix(start)
        if ".resnets." in f".{start}":
            rest = RESNET[rest.rpartition(".")[0]] + "." + rest.rpartition(".")[2]
        theirs = UNET[start]
        block = start.partition(".upsamplers")[0]
        if ".upsamplers." in start and not any(
            n.startswith(f"{block}.attentions") for n in weights
        ):
            theirs = f"{theirs.removesuffix('2.')}1."  # after the resnet, no attention between
        tensors[f"model.diffusion_model.{theirs}{rest}"] = tensor.contiguous()
    for name, tensor in pipe.vae.state_dict().items():
        for ours, theirs in sorted(VAE.items(), key=lambda pair: -len(pair[0])):
            name = name.replace(ours, theirs)
        attention = "attn_1" in name and name.endswith("weight") and tensor.ndim == 2
        tensors[f"first_stage_model.{name}"] = tensor[..., None, None] if attention else tensor
    tensors |= encoder_tensors(pipe)
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def own(request: pytest.FixtureRequest, tiny: Models) -> Any:
    """The blocks of each release at a few channels, with tiny text encoders."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    kind = request.param
    first = StableDiffusionPipeline.from_pretrained(tiny.model)
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "sd1": {"block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 32},
        "sd2": {
            "block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 32,
            "use_linear_projection": True,
        },
        "sdxl": {
            "block_out_channels": (8, 8, 16), "cross_attention_dim": 32 + 64,
            "use_linear_projection": True, "transformer_layers_per_block": (1, 1, 2),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        },
    }[kind]  # fmt: skip
    common = {
        "unet": UNet2DConditionModel(
            sample_size=16, norm_num_groups=4, attention_head_dim=2, **blocks
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 8, 8), layers_per_block=2, norm_num_groups=2, sample_size=128,
        ),
        "text_encoder": first.text_encoder, "tokenizer": first.tokenizer,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }  # fmt: skip
    if kind == "sdxl":
        config = CLIPTextConfig.from_dict(
            first.text_encoder.config.to_dict() | {"hidden_size": 64, "projection_dim": 24}
        )
        return StableDiffusionXLPipeline(
            text_encoder_2=CLIPTextModelWithProjection(config),
            tokenizer_2=first.tokenizer,
            **common,
        )
    return StableDiffusionPipeline(
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **common
    )


def test_a_single_file_gives_the_same_images_as_the_folder_it_was_made_from(
    tiny: Models,
    own: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own.save_pretrained(tmp_path / "sd")
    save_file(checkpoint_of(own), tmp_path / "own.safetensors")
    monkeypatch.setattr(single_file, "fetch", lambda *_: tmp_path / "sd")  # its configuration
    models = dataclasses.replace(tiny, model=str(tmp_path / "own.safetensors"))
    assert models.hub_id is None
    folder = models.folder
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    is_sd2 = not hasattr(own, "text_encoder_2") and own.unet.config.use_linear_projection
    assert ("2.1-base) predict noise and need a diffusers folder" in caplog.text) == is_sd2
    images = []
    for place in (tmp_path / "sd", folder):
        pipe = pipeline.open_pipeline(place)
        [image] = sampling.generate_batch(pipe, ["an apple"], [1], 2, 3.0)
        images.append(image.tobytes())
    assert images[0] == images[1]
    monkeypatch.setattr(single_file, "fetch", None)
    assert dataclasses.replace(models).folder == folder  # converted once
