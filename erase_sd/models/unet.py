"""U-Nets on disk: loading one, one with unlearned weights, and one in a single-file checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError
from .tensors import in_precision
from .text_encoder import load_weights

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

UNET = "unet"
"""Name of the U-Net in a pipeline."""
UNET_FILE = "diffusion_pytorch_model.safetensors"
LARGE = 500_000_000
"""A U-Net with more parameters recomputes its activations in the backward pass: those of Stable Diffusion 1
take 4 GB per image of 512 px, and methods and attacks differentiate through up to 12 images at once."""


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The U-Net of a diffusers folder, in float32; ModelError for damaged or foreign weights."""
    from diffusers import UNet2DConditionModel

    return load_weights(UNet2DConditionModel, folder)


def unet_with(weights: Mapping[str, Tensor], base: Path) -> UNet2DConditionModel:
    """The U-Net in the folder `base` with the tensors of `weights`; ModelError if one does not fit."""
    unet: Any = load_unet(base)
    check_shapes(UNET, weights, unet)
    unet.load_state_dict({n: tensor.cpu() for n, tensor in weights.items()}, strict=False)
    return unet


def unet_tensors(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of an erased U-Net's folder; ModelError if they do not fit its configuration, or are
    not finite in `dtype`."""
    unet: Any = load_unet(folder)
    return in_precision(unet.state_dict(), dtype, folder)


def single_file_unet(
    names: Iterable[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any], base: Path
) -> dict[str, Tensor]:
    """A U-Net's tensors under the names of the single-file checkpoint `base`, which holds `names`.

    Raises ModelError if the checkpoint has no counterpart of one.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    # The conversion renames values and never reads them, so each name goes through it as a value.
    try:
        theirs = convert_ldm_unet_checkpoint({name: name for name in names}, dict(config))
    except (KeyError, ValueError, IndexError, TypeError):  # blocks that it cannot convert
        theirs = {}
    for name in tensors:
        if theirs.get(name) is None:
            raise ModelError(f"has no {UNET} of this kind of model", field="base", value=base)
    return {theirs[name]: tensor for name, tensor in tensors.items()}


def recompute_if_large(unet: Any) -> None:
    """Lets the backward pass through a large U-Net recompute its activations, which then need not be kept."""
    if sum(parameter.numel() for parameter in unet.parameters()) > LARGE:
        unet.enable_gradient_checkpointing()


@contextlib.contextmanager
def watched(unet: Any, ending: str, read: Callable[..., None]) -> Iterator[None]:
    """Inside, `read` is called with a module and its inputs before each module whose name ends that way.

    What it keeps has gradients, so nothing is recomputed: the backward pass would not call it again.
    """
    recomputes = unet.is_gradient_checkpointing
    hooks = [
        module.register_forward_pre_hook(read, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith(ending)
    ]
    if recomputes:
        unet.disable_gradient_checkpointing()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if recomputes:
            unet.enable_gradient_checkpointing()


def check_shapes(name: str, weights: Mapping[str, Tensor], module: Any) -> None:
    """ModelError if a tensor has no counterpart of its shape in the pipeline's module of that name."""
    own = module.state_dict()
    for parameter, tensor in weights.items():
        if parameter not in own:
            raise ModelError(f"{name}: the pipeline's own has no {parameter}")
        if own[parameter].shape != tensor.shape:
            raise ModelError(
                f"{name}: {parameter} is {tuple(tensor.shape)}, the pipeline's own is "
                f"{tuple(own[parameter].shape)}"
            )
