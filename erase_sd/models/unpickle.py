"""The tensors and plain facts of a PyTorch `.pt` file, read without running anything of its pickle.

A pickle is a program: it names classes and functions, and has them called. The reader here hands it
an `Inert` for each name, so all that it can do is to pile up records. Tensors are rebuilt from these
afterwards, by us.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

# What the pickles of YOLOv5 and of ultralytics name; whatever else one names is no part of a model.
KNOWN = re.compile(
    r"(models|ultralytics|torch\.nn)\.[\w.]+"
    r"|torch\.(\w+Storage|Size|device|bool|b?float\d+|u?int\d+)"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|collections\.OrderedDict|(__builtin__|builtins)\.(set|frozenset|dict|list|tuple|slice)"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)|_codecs\.encode"
    r"|pathlib\.(_local\.)?(Posix|Windows)Path"
)
STORED = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


class Inert(dict[Any, Any]):
    """What stands in a pickle's result for an object of a class that it names.

    It keeps the arguments of its making (`args`), the state it was given (`state`) and its items.
    Without a `__dict__`, and with a `__setstate__` of its own, nothing that the pickle sets on it
    is ever looked up or called.
    """

    __slots__ = ("args", "state")
    name = ""  # module and name of the class
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __init__(self, *args: Any, **_: Any) -> None:
        """Nothing: what it was made with is in `args`, not among its items."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Reader(pickle.Unpickler):
    """Reads the pickle of an opened `.pt`; each class, function and storage in it is an `Inert`."""

    def __init__(self, file: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(io.BytesIO(file.read(pickled)))
        self.file, self.folder = file, pickled.removesuffix("data.pkl") + "data/"

    def find_class(self, module: str, name: str) -> type[Inert]:
        full = f"{module}.{name}"
        if not KNOWN.fullmatch(full):
            raise ModelError(f"names {full[:80]}, which is no part of a detector; refused unread")
        return type("Inert", (Inert,), {"__slots__": (), "name": full})

    def persistent_load(self, pid: Any) -> Inert:
        kind, storage, key = pid[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown record {kind!r}")
        return Inert(STORED[storage.name.removeprefix("torch.")], self.file.read(self.folder + key))


def read(path: Path) -> Any:
    """The object in a `.pt` file: plain data, with an `Inert` for each object of a class.

    Raises ModelError for a file of another form, a damaged one, and one that names what is no part
    of a model.
    """
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"--detector {path}: no .pt file of PyTorch 1.6 or later, or damaged; refused unread"
        )
    with zipfile.ZipFile(path) as file:
        pickles = [name for name in file.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise ModelError(f"--detector {path}: no .pt file of PyTorch (no data.pkl)")
        try:
            return Reader(file, pickles[0]).load()
        except ModelError as error:
            raise ModelError(f"--detector {path}: {error}") from None
        except Exception as error:  # bytes of a stranger can raise anything
            raise ModelError(f"--detector {path}: damaged ({error})") from None


def modules(module: Inert, prefix: str = "") -> Iterator[tuple[str, Inert]]:
    """A recorded `torch.nn.Module` and all inside it, each after its dotted name with a last dot."""
    yield prefix, module
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from modules(child, f"{prefix}{name}.")


def tensors(module: Inert) -> dict[str, Tensor]:
    """Its parameters and buffers under the names of its `state_dict`; floating ones in float32.

    Raises an exception of any kind where the records are none of a module's.
    """
    return {
        prefix + name: _tensor(record)
        for prefix, part in modules(module)
        for name, record in (part.state["_parameters"] | part.state["_buffers"]).items()
        if record is not None
    }


def _tensor(record: Inert) -> Tensor:
    """From the arguments of `torch._utils._rebuild_tensor_v2`: storage, offset, size, stride."""
    if record.name == "torch._utils._rebuild_parameter":
        record = record.args[0]
    storage, offset, size, stride = record.args[:4]
    dtype, data = storage.args
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    if math.prod(size) > len(flat):
        raise ValueError(f"a tensor of {list(size)} in a storage of {len(flat)}")
    tensor = flat.as_strided(size, stride, offset).clone()
    return tensor.float() if tensor.is_floating_point() else tensor
