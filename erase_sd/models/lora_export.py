"""A run's LoRA on disk, in the layouts of kohya, diffusers and PEFT, with what it leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.concept import slug
from ..errors import ModelError, SettingError
from ..files import write_json
from ..run.records import ErasureRecord
from ..runtime import log
from .checkpoint_keys import hub_names
from .lora import (
    RANK,
    LoraQuality,
    LowRankChange,
    hidden_residual,
    kohya_tensors,
    low_rank_change,
    peft_tensors,
    with_strength,
)
from .pipeline_kinds import kind_of
from .presets import Models
from .text_encoder import load_text_encoder

MAX_RESIDUAL = 0.5
"""A LoRA that leaves more of the erasure undone than this is refused."""
MAX_RANK = 10_000
"""Wider than any layer of a CLIP."""
DIFFUSERS_FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"


def write_lora(
    folder: Path,
    encoders: Mapping[str, Path],
    models: Models,
    record: ErasureRecord,
    *,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str],
) -> None:
    """Writes the change of `encoders`, the folders of a run's erased encoders by name, as a LoRA.

    Files: `<concepts>-lora.safetensors` (kohya: ComfyUI, A1111, Forge), `pytorch_lora_weights`
    (diffusers), a folder of each encoder (PEFT), and `lora.json`, rank and residual. Raises
    SettingError for a rank below 1, ModelError if more than `MAX_RESIDUAL` of the erasure is left undone.
    """
    rank = RANK if rank is None else rank
    if not 1 <= rank <= MAX_RANK:
        raise SettingError(f"needs a whole number from 1 to {MAX_RANK:,}", field="rank", value=rank)
    kohya: dict[str, Tensor] = {}
    diffusers: dict[str, Tensor] = {}
    qualities = {}
    numbered = kind_of(models.folder) != "StableDiffusionPipeline"
    for name, source in encoders.items():
        change, qualities[name] = _change(name, source, models, record, rank)
        if dtype:
            factors = {n: (d.to(dtype), u.to(dtype)) for n, (d, u) in change.factors.items()}
            change = dataclasses.replace(change, factors=factors)
        kohya |= kohya_tensors(name, numbered, change)
        diffusers |= peft_tensors(f"{name}.", change)
        _write_peft(folder / name, change, metadata)
    title = "-".join(slug(concept.name) for concept in record.concepts)
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank),
               "ss_network_alpha": str(rank)}  # fmt: skip
    save_file(kohya, folder / f"{title}-lora.safetensors", metadata={**metadata, **network})
    save_file(diffusers, folder / DIFFUSERS_FILE, metadata=dict(metadata))
    write_json(folder / "lora.json", {n: dataclasses.asdict(q) for n, q in qualities.items()})


def _change(
    name: str, source: Path, models: Models, record: ErasureRecord, rank: int
) -> tuple[LowRankChange, LoraQuality]:
    """One encoder's LoRA, and how much of the erasure it carries."""
    from transformers import CLIPTokenizer

    original, erased = load_text_encoder(models.folder / name), load_text_encoder(source)
    weights = (hub_names(dict(model.named_parameters())) for model in (original, erased))
    before, after = ({n: p.detach() for n, p in tensors.items()} for tensors in weights)
    change = low_rank_change(before, after, rank)
    if not change.factors:
        raise ModelError(
            f"{source}: the linear layers are the original's; there is nothing to export"
        )
    tokenizer = CLIPTokenizer.from_pretrained(
        models.folder / name.replace("text_encoder", "tokenizer"), local_files_only=True
    )
    residual = hidden_residual(
        original, erased, with_strength(original, change.factors), tokenizer,
        [concept.name for concept in record.concepts],
    )  # fmt: skip
    if residual > MAX_RESIDUAL:
        raise ModelError(
            f"leaves {residual:.0%} of the erasure of {name} undone, at most {MAX_RESIDUAL:.0%} is "
            "accepted; raise it, or export to diffusers",
            field="rank",
            value=rank,
        )
    log.info(
        "%s: rank %d; hidden states keep %.0f%% of the original's distance from the erased encoder's; "
        "biases, norms and embeddings are left out",
        name, rank, 100 * residual,
    )  # fmt: skip
    quality = LoraQuality(
        rank=rank,
        weight_residual=change.weight_residual,
        left_out=change.left_out,
        hidden_residual=residual,
    )
    return change, quality


def _write_peft(folder: Path, change: LowRankChange, metadata: Mapping[str, str]) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`, for `PeftModel.from_pretrained`.

    Every tensor is there twice: transformers 5 has dropped `text_model.` from the names of
    `CLIPTextModel`, and PEFT ignores names that it does not know.
    """
    folder.mkdir()
    tensors = peft_tensors("base_model.model.", change)
    tensors |= {n.replace(".text_model.", "."): t.clone() for n, t in tensors.items()}
    save_file(tensors, folder / PEFT_FILE, metadata=dict(metadata))
    layers = {weight.split(".")[-2] for weight in change.factors}
    ranks = {_layer(weight): len(down) for weight, (down, _) in change.factors.items()}
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "bias": "none",
        "inference_mode": True, "fan_in_fan_out": False, "lora_dropout": 0.0,
        "r": change.rank, "lora_alpha": change.rank, "target_modules": sorted(layers),
        "rank_pattern": {name: r for name, r in ranks.items() if r != change.rank},
        "alpha_pattern": {name: r for name, r in ranks.items() if r != change.rank},
    }  # fmt: skip
    write_json(folder / "adapter_config.json", config)


def _layer(weight: str) -> str:
    """A weight's layer as a pattern of PEFT's, which matches the ends of names."""
    return weight.removesuffix(".weight").removeprefix("text_model.")
