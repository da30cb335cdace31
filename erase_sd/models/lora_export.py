"""A run's LoRA on disk, in the layouts of kohya, diffusers and PEFT, with what it leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.concept import joined_slug
from ..errors import ModelError, SettingError
from ..files import write_json
from ..reading import read_json
from ..run.records import ErasureRecord
from ..runtime import log
from .checkpoint_keys import named_weights
from .lora import (
    RANK,
    LowRankChange,
    kohya_tensors,
    low_rank_change,
    peft_tensors,
    with_strength,
)
from .lora_quality import LoraQuality, hidden_residual, prediction_residual
from .pipeline_kinds import kind_of
from .presets import Models
from .tensors import in_precision
from .text_encoder import load_text_encoder
from .unet import UNET, load_unet

MAX_RESIDUAL = 0.5
"""A LoRA that leaves more of the erasure undone than this is refused."""
MAX_RANK = 10_000
"""Wider than any layer of a CLIP or a U-Net."""
DIFFUSERS_FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"


def write_lora(
    folder: Path,
    modules: Mapping[str, Path],
    models: Models,
    record: ErasureRecord,
    *,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str],
) -> None:
    """Writes the change of `modules`, the folders of what a run erased by name, as one LoRA.

    Files: `<concepts>-lora.safetensors` (kohya: ComfyUI, A1111, Forge), `pytorch_lora_weights`
    (diffusers), a folder per module (PEFT), and `lora.json` with rank and residual. Raises SettingError
    for a rank below 1, ModelError if more than `MAX_RESIDUAL` of the erasure is left undone.
    """
    rank = RANK if rank is None else rank
    if not 1 <= rank <= MAX_RANK:
        raise SettingError(f"needs a whole number from 1 to {MAX_RANK:,}", field="rank", value=rank)
    kohya: dict[str, Tensor] = {}
    diffusers: dict[str, Tensor] = {}
    qualities = {}
    numbered = kind_of(models.folder) != "StableDiffusionPipeline"
    for name, source in modules.items():
        change, qualities[name] = _change(name, source, models, record, rank)
        factors = {}
        for n, (down, up) in change.factors.items():
            pair = in_precision({f"{n}, down": down, f"{n}, up": up}, dtype, source)
            factors[n] = (pair[f"{n}, down"], pair[f"{n}, up"])
        change = dataclasses.replace(change, factors=factors)
        kohya |= kohya_tensors(name, numbered, change)
        diffusers |= peft_tensors(f"{name}.", _with_attention(name, source, change))
        _write_peft(folder, name, change, metadata)
    title = joined_slug([concept.name for concept in record.concepts]).replace("+", "-")
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank),
               "ss_network_alpha": str(rank)}  # fmt: skip
    save_file(kohya, folder / f"{title}-lora.safetensors", metadata={**metadata, **network})
    save_file(diffusers, folder / DIFFUSERS_FILE, metadata=dict(metadata))
    write_json(folder / "lora.json", {n: dataclasses.asdict(q) for n, q in qualities.items()})


def _change(
    name: str, source: Path, models: Models, record: ErasureRecord, rank: int
) -> tuple[LowRankChange, LoraQuality]:
    """One module's LoRA, and how much of the erasure it carries."""
    load: Callable[[Path], Any] = load_unet if name == UNET else load_text_encoder
    original, erased = load(models.folder / name), load(source)
    before, after = (
        {weight: tensor.detach() for weight, tensor in named_weights(name, module).items()}
        for module in (original, erased)
    )
    change = low_rank_change(before, after, rank)
    if not change.factors:
        raise ModelError(
            f"{source}: its linear layers are the same as the original's; there is nothing to export"
        )
    lora = with_strength(name, original, change.factors)
    concepts = [concept.name for concept in record.concepts]
    if name == UNET:
        residual = prediction_residual(models.folder, erased, lora, concepts)
    else:
        from transformers import CLIPTokenizer

        words = models.folder / name.replace("text_encoder", "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
        residual = hidden_residual(original, erased, lora, tokenizer, concepts)
    _check_residual(name, residual, rank)
    quality = LoraQuality(
        rank=rank,
        weight_residual=change.weight_residual,
        left_out=change.left_out,
        output_residual=residual,
    )
    return change, quality


def _check_residual(name: str, residual: float, rank: int) -> None:
    """Logs the residual of a module's LoRA; ModelError if it is above `MAX_RESIDUAL`."""
    if not residual <= MAX_RESIDUAL:  # also for NaN: weights may overflow
        raise ModelError(
            f"leaves {residual:.0%} of the erasure of {name} undone, at most {MAX_RESIDUAL:.0%} is "
            "accepted; raise it, or export to diffusers",
            field="rank",
            value=rank,
        )
    output = "predictions" if name == UNET else "hidden states"
    log.info(
        "%s: the LoRA of rank %d leaves %.0f%% of the erasure undone, measured by its %s; it holds no "
        "biases, norms or embeddings",
        name, rank, 100 * residual, output,
    )  # fmt: skip


def _with_attention(name: str, source: Path, change: LowRankChange) -> LowRankChange:
    """A text encoder's change with an empty one of an attention layer, if it has none: only by attention
    layers does diffusers recognize the layout of the file, and earlier versions the scale, from its rank."""
    layer = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    if name == UNET or any(".self_attn." in weight for weight in change.factors):
        return change
    width = int(read_json(source / "config.json")["hidden_size"])
    down = next(down for down, _ in change.factors.values())
    empty = (down.new_zeros(len(down), width), down.new_zeros(width, len(down)))
    return dataclasses.replace(change, factors={**change.factors, layer: empty})


def _write_peft(
    folder: Path, name: str, change: LowRankChange, metadata: Mapping[str, str]
) -> None:
    """Writes a module's `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads.

    A text encoder's tensors are written under two names: transformers 5 has dropped `text_model.` from
    the names of `CLIPTextModel`, and PEFT ignores names that it does not know.
    """
    own = folder / name
    own.mkdir()
    tensors = peft_tensors("base_model.model.", change)
    if name != UNET:
        tensors |= {n.replace(".text_model.", "."): t.clone() for n, t in tensors.items()}
    save_file(tensors, own / PEFT_FILE, metadata=dict(metadata))
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "bias": "none",
        "inference_mode": True, "fan_in_fan_out": False, "lora_dropout": 0.0,
        "r": change.rank, "lora_alpha": change.rank, "target_modules": sorted(map(_layer, change.factors)),
    }  # fmt: skip
    write_json(own / "adapter_config.json", config)


def _layer(weight: str) -> str:
    """A weight's layer as a pattern of PEFT's, which matches the ends of names."""
    return weight.removesuffix(".weight").removeprefix("text_model.")
