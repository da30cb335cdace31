"""Descriptions of the methods for `erase-sd methods`, read from their docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from .base import Method
from .registry import METHODS


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter, its default, and the text under its field."""

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class MethodDescription:
    """A method as its file describes it."""

    name: str
    citation: str
    about: str
    """The idea, and how it differs from the paper."""
    trained_parameters: str
    learning_rate: float | None
    """None for methods in closed form."""
    steps: int | None
    """None for methods in closed form."""
    hyperparameters: tuple[Hyperparameter, ...]


def describe(name: str) -> MethodDescription:
    """The description of the method called `name`."""
    method = METHODS[name]
    meanings: dict[str, str] = {}
    for base in reversed(method.__mro__):  # a subclass may say more of an inherited field
        if base.__module__.startswith(__package__):
            meanings |= _meanings(base)
    citation, _, about = (inspect.getdoc(method) or "").partition("\n")
    learning_rate, steps = None, None
    if issubclass(method, Method):
        learning_rate, steps = method.learning_rate, method.steps
    return MethodDescription(
        name,
        citation=citation,
        about=" ".join(about.split()),
        trained_parameters=method.trained_parameters,
        learning_rate=learning_rate,
        steps=steps,
        hyperparameters=tuple(
            Hyperparameter(field, default, meanings.get(field, ""))
            for field, default in method.hyperparameters().items()
        ),
    )


def _meanings(method: type) -> dict[str, str]:
    """The text under each field of a class."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    assert isinstance(body, ast.ClassDef)
    meanings: dict[str, str] = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(line.target, ast.Name)
            meanings[line.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return meanings
