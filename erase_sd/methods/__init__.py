"""Unlearning methods, one file each: a frozen dataclass whose `loss` is the idea."""

from __future__ import annotations

from .anchored import AnchoredCLIPErase
from .base import Batch, Method, Reduced, Side, Student, World
from .cliperase import CLIPErase
from .emmn import EMMN
from .ga import GradientAscent
from .graddiff import GradientDifference
from .hirm import HiRM
from .kl import KLMinimization
from .lipschitz import Lipschitz
from .multidelete import MultiDelete
from .npo import NPO
from .projection import Projection

METHODS: dict[str, type[Method]] = {
    "cliperase": CLIPErase,
    "cliperase-anchored": AnchoredCLIPErase,
    "ga": GradientAscent,
    "graddiff": GradientDifference,
    "kl": KLMinimization,
    "npo": NPO,
    "emmn": EMMN,
    "lipschitz": Lipschitz,
    "multidelete": MultiDelete,
    "hirm": HiRM,
    "projection": Projection,
}

__all__ = ["METHODS", "Batch", "Method", "Reduced", "Side", "Student", "World"]
