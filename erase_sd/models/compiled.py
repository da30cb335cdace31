"""Models whose blocks are compiled by torch.compile: on a GPU, fused kernels read and write activations
less often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import ModelError, reason
from .t5 import denoising_model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_BLOCKS = ("ResnetBlock2D",)
"""Compiled beside the blocks that diffusers calls repeated, which are those with attention."""
_GRAPHS = 64
"""Most graphs of a block, one for each of its shapes; PyTorch's own limit of 8 is below Stable Diffusion's."""


def compile_denoiser(pipe: DiffusionPipeline) -> None:
    """Makes the denoiser compile each of its blocks at the first batch, and again for a batch of another size."""
    compile_blocks(denoising_model(pipe))


def compile_blocks(model: nn.Module) -> None:
    """The same for any model of diffusers.

    Kernels are chosen without timing them, so that every process chooses the same.
    """
    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    names = {*_BLOCKS, *(getattr(model, "_repeated_blocks", None) or ())}
    for block in model.modules():
        if type(block).__name__ in names and block._compiled_call_impl is None:
            block.compile(fullgraph=True, dynamic=False, options={"deterministic": True})


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Raises ModelError where a block cannot be compiled, for example without a C++ compiler."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        inner = getattr(error, "inner_exception", error)
        raise ModelError(
            f"the denoiser cannot be compiled ({reason(inner)}); leave it out",
            field="compiled",
        ) from None
