"""Tensors in safetensors files: read as they are, or converted to a precision and finite in it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ModelError, reason


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

    Raises ModelError for a tensor that is not finite in it: float16 ends at 65,504.
    """
    stored = {n: t.to(dtype) if dtype and t.is_floating_point() else t for n, t in tensors.items()}
    for name, tensor in stored.items():
        wide = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite
        if not wide.isfinite().all():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{source}: {name} is not finite in {kind}; needs more precision")
    return stored
