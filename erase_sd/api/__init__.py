"""The Python words: a function for each stage (`stages`, `research`), and what to do with a run (`encoders`).

Threads that call them take turns; processes run side by side."""

from .encoders import apply, concept_removed, load
from .research import attack, compare, evaluate, explain
from .stages import generate, score, unlearn

__all__ = [
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
