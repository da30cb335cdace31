"""The miniature world: a Stable Diffusion small enough for a laptop, with its data and detector."""

from __future__ import annotations

from pathlib import Path

from .dataset import dataset

WEIGHTS = Path(__file__).parent / "weights"

__all__ = ["WEIGHTS", "dataset"]
