"""Erases concepts from Stable Diffusion by unlearning its CLIP text encoder, and measures the result."""

from .api import (
    apply,
    attack,
    compare,
    concept_removed,
    evaluate,
    explain,
    generate,
    load,
    score,
    unlearn,
)
from .errors import (
    DataError,
    DivergedError,
    EraseError,
    ModelError,
    NotErasedError,
    RunError,
    SettingError,
)
from .runtime import version_of_package

__version__ = version_of_package()

__all__ = [
    "DataError",
    "DivergedError",
    "EraseError",
    "ModelError",
    "NotErasedError",
    "RunError",
    "SettingError",
    "apply",
    "attack",
    "compare",
    "concept_removed",
    "evaluate",
    "explain",
    "generate",
    "load",
    "score",
    "unlearn",
]
