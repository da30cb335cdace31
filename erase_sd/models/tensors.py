"""Tensors in safetensors files and in modules: as they are, or converted to a precision and finite in it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ModelError, reason

Module = TypeVar("Module", bound=nn.Module)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name; ModelError if it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: weights cannot be loaded ({reason(error)})") from None


def tensor_sizes(folder: Path) -> dict[str, int]:
    """How many numbers each tensor in the files of a model's folder has, by name; copies in other
    precisions count once. A file that cannot be read is left out: loading it says why, if it is needed."""
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with (
            contextlib.suppress(OSError, SafetensorError),
            safe_open(path, framework="pt") as file,
        ):
            sizes |= {n: math.prod(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    return sizes


def in_precision(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, source: Path
) -> dict[str, Tensor]:
    """The tensors of `source` as `dtype`, or as they are if it is None; integers stay as they are.

    Raises ModelError for a tensor that is not finite in it.
    """
    return {name: converted(name, tensor, dtype, source) for name, tensor in tensors.items()}


def module_in_precision(module: Module, dtype: torch.dtype, source: Path | str) -> Module:
    """The module of `source`, in place, as `dtype`.

    Raises ModelError, and changes nothing, for a weight that is not finite in it.
    """
    for name, tensor in module.state_dict().items():
        if tensor.dtype != dtype:
            converted(name, tensor, dtype, source)  # one at a time: a copy of all takes memory
    return module.to(dtype)


def converted(name: str, tensor: Tensor, dtype: torch.dtype | None, source: Path | str) -> Tensor:
    """A tensor as `dtype`; ModelError if it is not finite in it: float16 ends at 65,504."""
    stored = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    wide = stored.float() if stored.element_size() == 1 else stored  # float8 has no isfinite
    if not wide.isfinite().all():
        kind = str(stored.dtype).removeprefix("torch.")
        raise ModelError(f"{source}: {name} is not finite in {kind}; needs more precision")
    return stored
