"""Rows of tensors shared among the processes in step, with gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .group import alone, carried, connected, place, summed


def by_rows(
    work: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, unit: int = 1
) -> tuple[Tensor, ...]:
    """Applies `work` to tensors of n rows, which gives tensors of n rows; each process computes some rows.

    Gradients pass through: those of the inputs are complete in every process, those of parameters cover
    only this process's rows (`sum_gradients`). Shares are whole batches of `unit` rows, so that the rows
    computed together do not depend on the number of processes.
    """
    number, count = place()
    if count == 1:
        return work(*inputs)
    rows = len(inputs[0])
    units = -(-rows // unit)
    bounds = [min(rows, unit * (units * n // count)) for n in range(count + 1)]
    start, end = bounds[number], bounds[number + 1]
    # A process without rows computes one that is dropped, since every process takes part in each exchange.
    own = slice(start, end) if start < end else slice(0, 1)
    parts = [_WithWholeGradient.apply(tensor)[own] for tensor in inputs]
    with alone():
        outputs = work(*parts)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    return tuple(_Gathered.apply(output, sizes) for output in outputs)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up the processes' gradients, each of which covers the rows of one process."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if place()[1] == 1 or not gradients:
        return
    flat = summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class _WithWholeGradient(torch.autograd.Function):
    """The same tensor; its gradient is the sum of those of all processes."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


class _Gathered(torch.autograd.Function):
    """The rows of all processes; a gradient comes back to the process that computed its row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        number, _ = place()
        ctx.sizes, ctx.number = sizes, number
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: sizes[number]] = rows[: sizes[number]]
        own = carried(padded)
        parts = [torch.empty_like(own) for _ in sizes]
        with connected():
            dist.all_gather(parts, own)
        whole = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(whole).to(rows.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sizes, number = ctx.sizes, ctx.number
        if not sizes[number]:
            return gradient.new_zeros(1, *gradient.shape[1:]), None
        start = sum(sizes[:number])
        return gradient[start : start + sizes[number]], None
