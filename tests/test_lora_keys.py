"""The LoRA's keys are those that ComfyUI, Forge and A1111 look up, by rules read in their source.

None of these programs is in the package index, so what each does with a key is restated here from:
ComfyUI, comfyanonymous/ComfyUI (commit 00728eb), `comfy/lora.py` and `comfy/utils.py`; Forge,
lllyasviel/stable-diffusion-webui-forge (commit dfdcbab), `backend/patcher/lora.py` and
`packages_3rdparty/comfyui_lora_collection/`, whose tables are ComfyUI's; A1111,
AUTOMATIC1111/stable-diffusion-webui (commit 873edba), `extensions-builtin/Lora/networks.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from test_single_file import checkpoint_of
from test_single_file import own as own

from erase_sd.models.checkpoint_keys import named_weights
from erase_sd.models.lora import LowRankChange, kohya_tensors
from erase_sd.models.unet import UNET, single_file_unet

ONE = (torch.ones(1, 1), torch.ones(1, 1))
TEXT_LAYERS = r"(mlp_fc[12]|self_attn_(q|k|v|out)_proj)"
COMFYUI_TEXT = rf"text_model_encoder_layers_([0-9]|[12][0-9]|3[01])_{TEXT_LAYERS}"
"""ComfyUI and Forge look for these layers in 32 blocks of each text encoder."""
RESNET, TRANSFORMER = (
    r"resnets_\d_(conv1|conv2|time_emb_proj|conv_shortcut)",
    r"attentions_\d_(proj_in|proj_out|transformer_blocks_\d_"
    r"(attn[12]_to_(q|k|v|out_0)|ff_net_0_proj|ff_net_2))",
)
COMFYUI_UNET = (
    rf"(down|up)_blocks_\d_({RESNET}|{TRANSFORMER})|mid_block_({RESNET}|{TRANSFORMER})"
    r"|down_blocks_\d_downsamplers_0_conv|up_blocks_\d_upsamplers_0_conv|conv_in|conv_out"
    r"|(time|add)_embedding_linear_[12]"
)
"""The layers of diffusers that their tables of the U-Net name."""
A1111_RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
                "conv_shortcut": "skip_connection"}  # fmt: skip
A1111_OPEN_CLIP = {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj"}
NOT_IN_A1111 = {
    "lora_unet_add_embedding_linear_1", "lora_unet_add_embedding_linear_2",
    "lora_unet_up_blocks_0_upsamplers_0_conv",
}  # fmt: skip
"""Keys of SDXL that A1111 takes for others; no method that changes the cross-attention writes them."""


def keys_of(pipe: Any, name: str) -> dict[str, str]:
    """Kohya's key of each linear layer and convolution of a module, and its weight's name."""
    weights = named_weights(name, getattr(pipe, name))
    keys = {}
    for weight in weights:
        if weights[weight].ndim == 1 or "embeddings." in weight or "text_projection" in weight:
            continue
        change = LowRankChange(rank=1, factors={weight: ONE}, weight_residual=0.0, left_out={})
        tensors = kohya_tensors(name, hasattr(pipe, "text_encoder_2"), change)
        keys[next(iter(tensors)).partition(".")[0]] = weight
    return keys


def encoders_of(pipe: Any) -> list[str]:
    return [name for name in ("text_encoder", "text_encoder_2") if hasattr(pipe, name)]


def a1111_unet(key: str) -> str:
    """The module of the U-Net that A1111 takes a key for: blocks are counted in threes."""
    layer = key.removeprefix("lora_unet_")
    if layer in ("conv_in", "conv_out"):
        return {"conv_in": "input_blocks_0_0", "conv_out": "out_2"}[layer]
    if match := re.fullmatch(r"time_embedding_linear_(\d)", layer):
        return f"time_embed_{2 * int(match[1]) - 2}"
    if match := re.fullmatch(r"down_blocks_(\d)_downsamplers_0_conv", layer):
        return f"input_blocks_{3 * int(match[1]) + 3}_0_op"
    if match := re.fullmatch(r"up_blocks_(\d)_upsamplers_0_conv", layer):
        return f"output_blocks_{3 * int(match[1]) + 2}_{2 if int(match[1]) else 1}_conv"
    if match := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", layer):
        kind, number, rest = match[1], int(match[2]), match[3]
        block = f"middle_block_{1 if kind == 'attentions' else 2 * number}"
    elif match := re.fullmatch(r"(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", layer):
        number, kind, rest = 3 * int(match[2]) + int(match[4]), match[3], match[5]
        block = f"input_blocks_{number + 1}" if match[1] == "down" else f"output_blocks_{number}"
        block += f"_{1 if kind == 'attentions' else 0}"
    else:
        return layer
    return f"{block}_{A1111_RESNET.get(rest, rest) if kind == 'resnets' else rest}"


def a1111_text(key: str, open_clip: bool) -> str:
    """The module of the text encoders that A1111 takes a key for; with OpenCLIP, query, key and value
    are one module."""
    match = re.fullmatch(rf"lora_te([12]?)_text_model_encoder_layers_(\d+)_{TEXT_LAYERS}", key)
    assert match, key
    encoder, block, layer = match[1], match[2], match[3]
    start = f"{int(encoder) - 1}_" if encoder else ""
    if not open_clip:
        return f"{start}transformer_text_model_encoder_layers_{block}_{layer}"
    layer = A1111_OPEN_CLIP.get(layer, layer.replace("self_attn", "attn"))
    return f"{start}model_transformer_resblocks_{block}_{re.sub('_[qkv]_proj$', '', layer)}"


def test_comfyui_and_forge_name_every_layer(own: Any) -> None:
    keys = keys_of(own, UNET)
    assert len(keys) > 50
    for key in keys:
        assert re.fullmatch(f"lora_unet_({COMFYUI_UNET})", key), key
    for number, name in enumerate(encoders_of(own), start=1):
        prefix = f"lora_te{number if len(encoders_of(own)) > 1 else ''}_"
        keys = keys_of(own, name)
        assert len(keys) == 6 * getattr(own, name).config.num_hidden_layers
        for key in keys:
            assert re.fullmatch(prefix + COMFYUI_TEXT, key), key


def test_a1111_puts_every_layer_where_it_belongs(own: Any) -> None:
    checkpoint, weights = checkpoint_of(own), own.unet.state_dict()
    names = single_file_unet(checkpoint, weights, own.unet.config, Path("base"))
    places = {
        weight: theirs.removeprefix("model.diffusion_model.").removesuffix(".weight")
        for weight, theirs in zip(weights, names, strict=True)
    }
    wrong = {
        key
        for key, weight in keys_of(own, UNET).items()
        if a1111_unet(key) != places[weight].replace(".", "_")
    }
    two = hasattr(own, "text_encoder_2")
    assert wrong == (NOT_IN_A1111 if two else set())
    modules = {
        name.rpartition(".")[0].removeprefix(start).replace(".", "_")
        for name in (key.replace("attn.in_proj_", "attn.") for key in checkpoint)
        for start in ("cond_stage_model.", "conditioner.embedders.")
        if name.startswith(start)
    }
    for name in encoders_of(own):
        open_clip = own.unet.config.use_linear_projection if not two else name == "text_encoder_2"
        for key in keys_of(own, name):
            assert a1111_text(key, open_clip) in modules, key
