"""A pretend GPU: tensors that say they are on `cuda` and hold their values on the CPU.

As on a card, an operation on tensors of both devices raises, except where PyTorch allows it: copies,
indices on the CPU, and elementwise operations with a CPU operand that has no dimensions. Unlike under
`FakeTensorMode`, the values are real and gradients flow, so whole commands run on it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchgen
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from erase_sd import runtime

aten = torch.ops.aten
CARD = torch.device("cuda", 0)
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
FUNCTIONS = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
CHECKED_INSIDE = r"func: ([\w.]+)\([^\n]*\n(?:  .*\n)*?  device_check: NoCheck"
SCALARS_MIX = {"allclose", *re.findall(CHECKED_INSIDE, FUNCTIONS.read_text())}
"""Elementwise operations, whose devices PyTorch's TensorIterator checks: it takes scalars of the CPU."""
CREATIONS = (torch.tensor, torch.as_tensor, torch.asarray)
MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as)
OF_VALUES = (Tensor.tolist, Tensor.__repr__, Tensor.data_ptr, Tensor.untyped_storage)
"""What needs the values in memory; `untyped_storage` is asked by safetensors before it copies them."""


class CardTensor(Tensor):
    """A tensor on the pretend card. To the autograd engine it is one of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> CardTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="cpu",
        )  # fmt: skip
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:
        return CARD

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the values, and puts the result where a card would have it."""
    leaves = [*_leaves(args), *_leaves(kwargs.values())]
    on_card = any(map(_on_card, leaves))
    # The autograd engine fills in gradients that are zero on what it takes for their device, the CPU.
    by_engine = torch._C._current_graph_task_id() != -1
    if on_card and not by_engine:
        _check_devices(func, args, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
    if kwargs.get("device") is not None:
        moved = torch.device(kwargs["device"]).type == "cuda"
        # To the engine, and to PyTorch's own casts in C++, everything is on the CPU.
        on_card = moved or (on_card and (by_engine or func in COPIES))
        kwargs = kwargs | ({"device": "cpu"} if on_card else {})
    if on_card and any(isinstance(leaf, Generator) for leaf in leaves):
        raise RuntimeError(f"{func}: expected a cuda generator, got one of the cpu")
    held = {name: _mapped(_held, value) for name, value in kwargs.items()}
    result = func(*_mapped(_held, args), **held)
    if func._schema.is_mutable:
        return args[0] if func._schema.returns else None
    return _mapped(_put_on_card, result) if on_card else result


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """What is in the values and in lists of them. PyTorch's own `tree_leaves` takes longer than an operation."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The value, or what is in the list, changed."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(change, each) for each in value])
    return change(value)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, CardTensor) else leaf


def _put_on_card(leaf: Any) -> Any:
    return CardTensor(leaf) if isinstance(leaf, Tensor) else leaf


def _on_card(tensor: Any) -> bool:
    return isinstance(tensor, CardTensor)


def _check_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raises where a card would, given that at least one of the tensors is on it."""
    on_cpu = [tensor for tensor in tensors if not _on_card(tensor)]
    if not on_cpu or func in COPIES:
        return
    target = args[0]
    if func in INDEXING:
        fits = _on_card(target) or not any(_on_card(index) for index in args[1])
        fits = fits and all(_on_card(v) == _on_card(target) or not v.dim() for v in args[2:3])
    else:
        fits = func.name().removeprefix("aten::") in SCALARS_MIX
        fits = fits and not any(tensor.dim() for tensor in on_cpu)
        fits = fits and (_on_card(target) or not func._schema.is_mutable)
    if not fits:
        raise RuntimeError(f"{func}: expected all tensors on one device, got cuda and cpu")


class _Operations(TorchDispatchMode):
    """Operations on no tensor of the card, such as those that create one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Moves between devices, which PyTorch would skip: to it, all tensors are on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if func is Tensor.new_tensor and tensor is not None:
            kwargs = {"dtype": tensor.dtype, "device": tensor.device} | kwargs
            func, args, tensor = torch.tensor, args[1:], None
        if func in CREATIONS and kwargs.get("device") is not None:
            created = func(*args, **{key: kwargs[key] for key in kwargs if key != "device"})
            return _move(Tensor.to, created, (created, kwargs["device"]), {})
        if tensor is not None and func in MOVES:
            return _move(func, tensor, args, kwargs)
        if isinstance(tensor, CardTensor) and func in OF_VALUES:
            return func(tensor.held)
        if isinstance(tensor, CardTensor) and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert a cuda tensor to numpy")
        if isinstance(tensor, CardTensor) and func == Tensor.data.__set__:  # type: ignore[attr-defined]
            raise NotImplementedError("the pretend card cannot set `data`")
        return func(*args, **kwargs)


def _move(func: Any, tensor: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """What one of MOVES returns."""
    device, dtype, layout = _place(func, tensor, args, kwargs)
    stays = device.type == tensor.device.type and dtype == tensor.dtype
    if stays and not layout and not kwargs.get("copy"):
        return tensor
    moved: Tensor = _Move.apply(tensor, device, dtype, layout or torch.preserve_format)
    return moved


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient comes back to the first one."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, device: torch.device, dtype: torch.dtype, layout: Any
    ) -> Tensor:
        ctx.device, ctx.dtype = tensor.device, tensor.dtype
        values = tensor.held if isinstance(tensor, CardTensor) else tensor
        to_card = device.type == "cuda"
        place = torch.device("cpu") if to_card else device
        copy: Tensor = aten._to_copy(values, device=place, dtype=dtype, memory_format=layout)
        return CardTensor(copy) if to_card else copy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values = gradient.held if isinstance(gradient, CardTensor) else gradient
        values = values.to(ctx.dtype)
        return CardTensor(values) if ctx.device == CARD else values, None, None, None


def _place(
    func: Any, tensor: Tensor, args: Any, kwargs: dict[str, Any]
) -> tuple[torch.device, torch.dtype, Any]:
    """The device, dtype and memory format that one of MOVES asks for."""
    if func in (Tensor.cpu, Tensor.cuda):
        return CARD if func is Tensor.cuda else torch.device("cpu"), tensor.dtype, None
    if len(args) > 1 and isinstance(args[1], Tensor):
        return args[1].device, args[1].dtype, None
    known = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, _, layout = torch._C._nn._parse_to(*args[1:], **known)
    return device or tensor.device, dtype or tensor.dtype, layout


class _Autocast(torch.autocast):
    """Lower precision on the card is lower precision on the CPU, where the values are."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


_is_autocast_enabled = torch.is_autocast_enabled


def _is_autocast_enabled_there(device_type: str = "cuda") -> bool:
    return _is_autocast_enabled("cpu" if device_type == "cuda" else device_type)


def _enter_without_gradients(self: Any) -> None:
    """`torch.inference_mode`, whose tensors could not be held by another tensor."""
    self._inference_mode_context = torch.no_grad()
    self._inference_mode_context.__enter__()


@contextlib.contextmanager
def pretend_card() -> Iterator[None]:
    """Inside, `cuda` is a pretend card, the device of the package, and modules can be moved to it."""
    # With its first backward pass, PyTorch starts a thread for each device that it knows, and then no
    # fork of the process has gradients. The pretend card needs none, and is made known after that.
    torch.ones(1, requires_grad=True).backward()  # type: ignore[no-untyped-call]
    torch._C._ensureCUDADeviceGuardSet()
    # A moved module has new parameters. Swapping the tensors of the old ones would keep those, but is
    # refused while a graph refers to them.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            patch("torch.cuda._lazy_init", lambda: None),
            patch("torch.autocast", _Autocast),
            patch("torch.amp.autocast", _Autocast),
            patch("torch.is_autocast_enabled", _is_autocast_enabled_there),
            patch.object(torch.inference_mode, "__enter__", _enter_without_gradients),
            patch.object(runtime, "device", lambda: torch.device("cuda")),
            _Operations(),
            _Moves(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
