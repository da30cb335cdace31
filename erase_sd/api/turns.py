"""One function at a time in a process: while transformers and diffusers open a model, they change PyTorch's
default dtype and initializers for all threads, which would change the weights of another thread's erasure."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..models.quiet import restored_libraries

P = ParamSpec("P")
T = TypeVar("T")


class _Turn:
    """The lock; the thread that has it may enter again, as a progress function may. A fork has its own,
    because a thread that the fork lacks may have held it."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.RLock()


turn = _Turn()


def in_turn(function: Callable[P, T]) -> Callable[P, T]:
    """The function; threads that call it, or another one that takes turns, wait for one another.

    Afterwards transformers and diffusers log as before."""

    @functools.wraps(function)
    def waiting(*arguments: P.args, **options: P.kwargs) -> T:
        with turn.lock, restored_libraries():
            return function(*arguments, **options)

    return waiting
