"""Tensors and plain data of a PyTorch `.pt` file, read without running anything in its pickle.

Every name in it becomes an `Inert` (`data.pickles`), from whose records the tensors are rebuilt.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.pickles import Inert, checked_pickle
from ..errors import ModelError, reason

# Names in the pickles of YOLOv5 and ultralytics; any other name does not belong to a model.
KNOWN = re.compile(
    r"(models|ultralytics|torch\.nn)\.[\w.]+"
    r"|torch\.(\w+Storage|Size|device|bool|b?float\d+|u?int\d+)"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|collections\.OrderedDict|(__builtin__|builtins)\.(set|frozenset|dict|list|tuple|slice)"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)|_codecs\.encode"
    r"|pathlib\.(_local\.)?(Posix|Windows)Path"
)
MAX_MODULES, MAX_NUMBERS = 10_000, 1 << 29
"""Maximum number of modules, and of numbers in the tensors, of a detector; YOLOv8x has 500 and 68
million."""
STORED = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


class InertUnpickler(pickle.Unpickler):
    """Reads the pickle in an opened `.pt`; every class, function and storage becomes an `Inert`."""

    def __init__(self, file: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(checked_pickle(file.read(pickled)))
        self.file, self.folder = file, pickled.removesuffix("data.pkl") + "data/"

    def find_class(self, module: str, name: str) -> type[Inert]:
        full = f"{module}.{name}"
        if not KNOWN.fullmatch(full):
            raise ModelError(f"names {full[:80]}, which is not part of a detector; refused")
        return type("Inert", (Inert,), {"__slots__": (), "name": full})

    def persistent_load(self, pid: Any) -> Inert:
        kind, storage, key = pid[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown record {kind!r}")
        return Inert(STORED[storage.name.removeprefix("torch.")], self.file.read(self.folder + key))


def read_pickle(path: Path) -> Any:
    """The object in a `.pt` file: plain data, with an `Inert` for every object of a class.

    Raises ModelError for another format, a damaged file, and a name that does not belong to a model.
    """
    if not zipfile.is_zipfile(path):
        raise ModelError(
            "damaged, or not a .pt file of PyTorch 1.6 or later", field="detector", value=path
        )
    try:
        with zipfile.ZipFile(path) as file:
            pickles = [name for name in file.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if len(pickles) != 1:
                raise ModelError("not a .pt file of PyTorch (no data.pkl)")
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise ModelError("holds more than its size; PyTorch's files are not compressed")
            return InertUnpickler(file, pickles[0]).load()
    except ModelError as error:
        raise ModelError(error.rule, field="detector", value=path) from None
    except Exception as error:  # a foreign file can raise anything
        raise ModelError(f"damaged ({reason(error)})", field="detector", value=path) from None


def modules(module: Inert, prefix: str = "") -> Iterator[tuple[str, Inert]]:
    """A pickled `torch.nn.Module` and all its submodules, each with its dotted name and a final dot.

    Raises ValueError after MAX_MODULES: with shared children, their number may be unbounded.
    """
    pending = [(prefix, module)]
    for _ in range(MAX_MODULES):
        if not pending:
            return
        name, own = pending.pop()
        yield name, own
        children = own.state["_modules"].items()
        pending += [(f"{name}{n}.", child) for n, child in children if child is not None][::-1]
    raise ValueError(f"more than {MAX_MODULES} modules")


def tensors(module: Inert) -> dict[str, Tensor]:
    """A pickled module's parameters and buffers, named as in its `state_dict`; floats as float32.

    Raises exceptions of any kind if the records are not those of a module.
    """
    found, left = {}, MAX_NUMBERS
    for prefix, child in modules(module):
        for name, record in (child.state["_parameters"] | child.state["_buffers"]).items():
            if record is not None:
                found[prefix + name] = tensor(record)
                left -= found[prefix + name].numel()
            if left < 0:  # many tensors may share one storage
                raise ValueError(f"more than {MAX_NUMBERS:,} numbers")
    return found


def tensor(record: Inert) -> Tensor:
    """A tensor from the arguments of `torch._utils._rebuild_tensor_v2`: storage, offset, size, stride."""
    if record.name == "torch._utils._rebuild_parameter":
        record = record.args[0]
    storage, offset, size, stride = record.args[:4]
    dtype, data = storage.args
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    if math.prod(size) > len(flat):
        raise ValueError(f"a tensor of {list(size)} in a storage of {len(flat)}")
    tensor = flat.as_strided(size, stride, offset).clone()
    return tensor.float() if tensor.is_floating_point() else tensor
