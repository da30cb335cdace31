"""The disk space that an unlearning needs."""

from __future__ import annotations

from pathlib import Path

from ..files import check_space
from ..methods.base import ClosedFormMethod
from ..models.tensors import tensor_sizes
from ..run import Run
from .settings import UnlearnSettings


def check_unlearning_space(run: Run, settings: UnlearnSettings, folders: list[Path]) -> None:
    """RunError if the disk is too small for the modules in `folders`, unlearned, and for their checkpoints.

    All are written in fp32. A checkpoint holds what trains, three times with Adam's two moments; while
    one is written, which may also hold weights that are not validated yet, the one before still exists.
    """
    method, numbers = settings.build(), 0
    for folder in folders:
        sizes = tensor_sizes(folder)
        whole = trained = sum(sizes.values())
        if isinstance(method, ClosedFormMethod):
            trained = 0
        elif method.unlearns == "unet":
            trained = sum(size for name, size in sizes.items() if method.trains(name))
        numbers += max(whole + 4 * trained, 7 * trained)
    check_space(run.folder, 4 * numbers)
