"""Stages of `erase-sd run` in child processes: the memory of one is back with the system before the next
begins, and the process that scores and reports has imported neither PyTorch nor diffusers."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from .. import runtime
from ..child import in_child

P = ParamSpec("P")
T = TypeVar("T")
UNUSED = ("triton", "peft", "scipy", "cuda", "jinja2")
"""Optional packages that transformers and diffusers import if they are there, 160 MB in all. With a preset's
own model, no stage uses them on a CPU; another one may have a scheduler that needs scipy."""
UNUSED_BY_IMAGES = (*UNUSED, "torchvision")
"""The same for image generation."""


def in_stage_process(
    unused: Sequence[str],
    meanwhile: Callable[[], None] | None,
    work: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """`work(...)` in a forked child without the packages `unused`; see `in_child`.

    In this process where a fork is not safe: on another system than Linux, once PyTorch is imported, and
    in a launcher's process.
    """
    if sys.platform != "linux" or "torch" in sys.modules or "MASTER_ADDR" in os.environ:
        return work(*args, **kwargs)
    context = multiprocessing.get_context("fork")
    return in_child(context, functools.partial(_prepare, unused), meanwhile, work, *args, **kwargs)


def _prepare(unused: Sequence[str]) -> None:
    sys.stdin = open(0, closefd=False)  # for questions; multiprocessing closes it  # noqa: SIM115
    if unused and runtime.device().type == "cpu":
        for package in unused:
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # imports then fail
