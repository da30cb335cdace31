"""The connected processes of a launcher: all get what each computes."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .. import runtime
from ..errors import RunError, reason
from ..termination import wait_for_signal

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Answer = TypeVar("Answer")

JOIN = datetime.timedelta(minutes=5)
"""How long the processes wait for one another to start."""
PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for another that is still alive; a lost connection is detected at once."""
GRACE = 10.0
"""Seconds that a launcher has to report a failed process and end the others, before they report the lost
connection themselves."""

_number, _count = 0, 1


def writes() -> bool:
    """Whether this process writes the run: it is the launcher's first, or the only one."""
    return runtime.processes()[0] == 0


def place() -> tuple[int, int]:
    """This process's number among those in step, from 0, and their count; (0, 1) outside of `together`."""
    return _number, _count


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, the launcher's processes share the work; all of them enter and leave together.

    Raises RunError if they cannot connect, or one of them ends.
    """
    global _number, _count
    if _count > 1 or runtime.processes()[1] == 1:
        yield
        return
    _join()
    _number, _count = runtime.processes()
    try:
        wait()
        yield
        wait()
    finally:
        _number, _count = 0, 1


def meet() -> None:
    """Returns once all of the launcher's processes have called it; for use outside of `together`."""
    with together():
        pass


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works on its own share, which is not divided again."""
    global _number, _count
    before = place()
    _number, _count = 0, 1
    try:
        yield
    finally:
        _number, _count = before


def each(items: Sequence[Item], work: Callable[[Item], Answer]) -> list[Answer]:
    """The answers of `work` to all items, in order; each of n processes does every n-th item. Answers must
    not hold GPU tensors."""
    number, total = place()
    with alone():
        own = [work(item) for item in items[number::total]]
    if total == 1:
        return own
    import torch.distributed as dist

    shares: list[list[Answer]] = [[] for _ in range(total)]
    with connected():
        dist.all_gather_object(shares, own)
    return [shares[i % total][i // total] for i in range(len(items))]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if _count == 1:
        return flag
    import torch

    return bool(summed(torch.tensor([float(flag)])))


def from_first(work: Callable[[], Answer]) -> Answer:
    """What `work` returns in the first process, which alone calls it; for reading files that may change."""
    if _count == 1:
        return work()
    import torch.distributed as dist

    answer: list[Any] = [None if _number else work()]
    with connected():
        dist.broadcast_object_list(answer)
    result: Answer = answer[0]
    return result


def wait() -> None:
    """Returns once all processes in step have called it."""
    any_of(flag=False)


def _join() -> None:
    """Connects the launcher's processes, once per program."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        return
    try:
        store, number, total = next(rendezvous("env://", timeout=JOIN))
        dist.init_process_group(
            _backend(), store=store, rank=number, world_size=total, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:  # torch's errors are RuntimeErrors
        raise RunError(
            f"the processes cannot connect ({reason(error)}); start all with erase-sd "
            "launch, or unset RANK, WORLD_SIZE and MASTER_ADDR"
        ) from None
    atexit.register(dist.destroy_process_group)


def _backend() -> str:
    """NCCL for GPU tensors if each process has a GPU of its own; gloo for tensors on the CPU."""
    import torch

    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if runtime.device().type == "cuda" and local <= torch.cuda.device_count():
        torch.cuda.set_device(runtime.device())
        return "cpu:gloo,cuda:nccl"
    return "gloo"


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Turns a lost connection into a RunError, once the launcher has had time to name the lost process."""
    try:
        yield
    except RuntimeError as error:
        wait_for_signal(GRACE)
        raise RunError(
            f"another process has ended ({reason(error)}); the same command resumes"
        ) from None


def carried(tensor: Tensor) -> Tensor:
    """A copy on the device where the processes can exchange it: the GPU with NCCL, else the CPU."""
    import torch.distributed as dist

    nccl = "nccl" in str(dist.get_backend_config()) and tensor.is_cuda
    return tensor.detach().clone() if nccl else tensor.detach().to("cpu", copy=True)


def summed(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors, which all have the same shape."""
    import torch.distributed as dist

    own = carried(tensor)
    with connected():
        dist.all_reduce(own)
    return own.to(tensor.device)
