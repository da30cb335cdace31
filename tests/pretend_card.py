"""A pretend GPU: tensors that say they are on `cuda` and hold their values on the CPU.

As on a card, an operation on tensors of both devices raises, except for those that PyTorch allows: an
operand without dimensions, indices on the CPU, and copies. Unlike under `FakeTensorMode`, the values are
real and gradients flow, so whole commands run on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from erase_sd import runtime

aten = torch.ops.aten
CARD = torch.device("cuda", 0)
ACROSS_DEVICES = {
    aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put.default,
    aten.index_put_.default,
}  # fmt: skip
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

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the values, and puts the result where a card would have it."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_card = any(isinstance(tensor, CardTensor) for tensor in tensors)
    on_cpu = any(tensor.dim() and not isinstance(tensor, CardTensor) for tensor in tensors)
    # The autograd engine fills in gradients that are zero on what it takes for their device, the CPU.
    by_engine = torch._C._current_graph_task_id() != -1
    if on_card and on_cpu and func not in ACROSS_DEVICES and not by_engine:
        raise RuntimeError(f"{func}: expected all tensors on one device, got cuda and cpu")
    if kwargs.get("device") is not None:
        # To the engine, which casts gradients back, everything is on the CPU.
        on_card = on_card if by_engine else torch.device(kwargs["device"]).type == "cuda"
        kwargs = kwargs | ({"device": "cpu"} if on_card else {})
    args_held, kwargs_held = tree_map(
        lambda leaf: leaf.held if isinstance(leaf, CardTensor) else leaf, (args, kwargs)
    )
    result = func(*args_held, **kwargs_held)
    if func._schema.is_mutable:
        return args[0]
    return tree_map(
        lambda leaf: CardTensor(leaf) if on_card and isinstance(leaf, Tensor) else leaf, result
    )


class _Operations(TorchDispatchMode):
    """Operations on no tensor of the card, such as those that create one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Moves between devices, which PyTorch would skip: to it, all tensors are on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if func in OF_VALUES and isinstance(tensor, CardTensor):
            return func(tensor.held)
        if tensor is None or func not in (Tensor.numpy, Tensor.cpu, Tensor.to):
            return func(*args, **kwargs)
        if func is Tensor.numpy:
            if isinstance(tensor, CardTensor):
                raise TypeError("can't convert a cuda tensor to numpy")
            return func(*args, **kwargs)
        device, dtype, layout = _place(tensor, "cpu" if func is Tensor.cpu else None, args, kwargs)
        if device.type == tensor.device.type and dtype == tensor.dtype and not layout:
            return tensor
        return _Move.apply(tensor, device, dtype, layout or torch.preserve_format)


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient comes back to the first one."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, device: torch.device, dtype: torch.dtype, layout: Any
    ) -> Tensor:
        ctx.device, ctx.dtype = tensor.device, tensor.dtype
        return aten._to_copy(tensor, device=device, dtype=dtype, memory_format=layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values = gradient.held if isinstance(gradient, CardTensor) else gradient
        values = values.to(ctx.dtype)
        return CardTensor(values) if ctx.device == CARD else values, None, None, None


def _place(
    tensor: Tensor, device: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[torch.device, torch.dtype, Any]:
    """The device, dtype and memory format that `Tensor.to` or `Tensor.cpu` asks for."""
    if device:
        return torch.device(device), tensor.dtype, None
    if len(args) > 1 and isinstance(args[1], Tensor):
        return args[1].device, args[1].dtype, None
    known = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, _, layout = torch._C._nn._parse_to(*args[1:], **known)
    return device or tensor.device, dtype or tensor.dtype, layout


class _Autocast(torch.autocast):
    """Lower precision on the card is lower precision on the CPU, where the values are."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _enter_without_gradients(self: Any) -> None:
    """`torch.inference_mode`, whose tensors could not be held by another tensor."""
    self._inference_mode_context = torch.no_grad()
    self._inference_mode_context.__enter__()


@contextlib.contextmanager
def pretend_card() -> Iterator[None]:
    """Inside, `cuda` is a pretend card, the device of the package, and modules can be moved to it."""
    torch._C._ensureCUDADeviceGuardSet()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            patch("torch.cuda._lazy_init", lambda: None),
            patch("torch.autocast", _Autocast),
            patch.object(torch.inference_mode, "__enter__", _enter_without_gradients),
            patch.object(runtime, "device", lambda: CARD),
            _Operations(),
            _Moves(),
        ):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
