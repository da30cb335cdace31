"""An erasure in a pipeline that is already open, of whatever class, precision and device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import ModelError
from ..runtime import log
from . import erased
from .checkpoint_keys import named_weights
from .tensors import converted
from .unet import UNET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

Pipeline = TypeVar("Pipeline")
ERASED = "erase_sd_concepts"
"""Attribute of a module with the names of the concepts that `apply` erased from it."""
ONCE_PER_LAYER = re.compile(
    r"\.layer_norm1\.bias$"  # of a text encoder
    r"|^(down_blocks|mid_block|up_blocks)[.\d]*\."  # of a U-Net
    r"(resnets\.\d+\.conv1|attentions\.\d+\.transformer_blocks\.\d+\.norm1)\.bias$"
)
"""A parameter that every layer has exactly once, and that an IP-Adapter, a LoRA or a motion module, which are
added to a layer, lack."""
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def apply(pipe: Pipeline, run_or_folder: str | Path) -> Pipeline:
    """Writes the erased weights of a run into the text encoders or the U-Net of `pipe`; returns it.

    Precision and device stay those of the pipeline. So do its offloading hooks, its LoRA adapters, and
    the rows that textual inversion added to the token embedding, loaded before or afterwards. Weights
    are overwritten in place: pipelines that share the text encoder change too, and a LoRA that was
    fused and then unloaded is lost. So is the erasure of another run in the same module, which a
    warning names; several concepts are erased in one run. If text encoders are erased, one that is not
    is named in a warning.

    Raises RunError if there is no such run, and ModelError if a module is missing, of another
    architecture, quantized, offloaded layer by layer, or fused with a LoRA, or if a weight is not
    finite in the pipeline's precision; the pipeline is then as it was.
    """
    folder = erased.erased_folder(run_or_folder)
    record = erased.check(folder)
    names = record.weights_sha256
    weights = {}
    for name in names:
        own = getattr(pipe, name, None)
        if own is None:
            raise ModelError(f"{type(pipe).__name__} has no {name}, which the run erased")
        weights[name] = _fitting(name, own, erased.load(folder, name))
    for name in names:
        own = getattr(pipe, name)
        _note_erasure(name, own, [concept.name for concept in record.concepts])
        for parameter, tensor in named_weights(name, own).items():
            if parameter in weights[name]:
                with torch.no_grad():
                    tensor[: len(weights[name][parameter])].copy_(weights[name][parameter])
    for name in ENCODERS if UNET not in names else ():
        if name not in names and (kept := getattr(pipe, name, None)) is not None:
            log.warning(
                "%s (%s) is not erased: it still knows the concept", name, type(kept).__name__
            )
    return pipe


def _note_erasure(name: str, own: Any, concepts: Sequence[str]) -> None:
    """Remembers in a module what is erased from it; warns if that brings back what was erased before."""
    if back := [concept for concept in getattr(own, ERASED, ()) if concept not in concepts]:
        log.warning(
            "%s knows %s again, because another run overwrites its erasure; erase all concepts in one "
            "run", name, ", ".join(back),
        )  # fmt: skip
    setattr(own, ERASED, tuple(concepts))


def _fitting(name: str, own: nn.Module, unlearned: Any) -> Mapping[str, Tensor]:
    """The erased weights by hub name, in the precision of the pipeline's module `own`; ModelError if it
    cannot take them."""
    weights = named_weights(name, unlearned)
    places = named_weights(name, own)
    if any(getattr(layer, "merged", False) for layer in own.modules()):
        # The LoRA would be lost, and unfusing it would take it out of the erased weights.
        raise ModelError(
            f"{name}: a LoRA is fused into it; unfuse it, apply the erasure, and fuse it again"
        )
    # The further layers of a deeper encoder or U-Net would stay the original's.
    if deeper := [p for p in places if ONCE_PER_LAYER.search(p) and p not in weights]:
        raise ModelError(f"{name}: the erased one has no {deeper[0]}")
    fitting = {}
    projection = "text_projection.weight"  # not every class of the same encoder has it
    for parameter, tensor in weights.items():
        place = places.get(parameter)
        if place is None and parameter == projection:
            continue
        if place is None:
            raise ModelError(f"{name}: the pipeline's {type(own).__name__} has no {parameter}")
        if place.is_meta or not place.is_floating_point():
            raise ModelError(
                f"{name}: its weights are quantized or offloaded layer by layer; apply the erasure "
                "before quantizing or offloading"
            )
        rows = len(place) >= len(tensor) if "token_embedding" in parameter else False
        if place.shape[1:] != tensor.shape[1:] or not (rows or len(place) == len(tensor)):
            raise ModelError(
                f"{name}: {parameter} is {tuple(place.shape)}, the erased one has "
                f"{tuple(tensor.shape)}"
            )
        fitting[parameter] = converted(parameter, tensor, place.dtype, name)
    return fitting
