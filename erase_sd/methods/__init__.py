"""Unlearning methods, one file each: a frozen dataclass whose `loss` is the idea."""

from __future__ import annotations

from .anchored import AnchoredCLIPErase
from .base import Batch, Method, Reduced, Side, Student
from .cliperase import CLIPErase

METHODS: dict[str, type[CLIPErase] | type[AnchoredCLIPErase]] = {
    "cliperase": CLIPErase,
    "cliperase-anchored": AnchoredCLIPErase,
}

__all__ = ["METHODS", "Batch", "Method", "Reduced", "Side", "Student"]
