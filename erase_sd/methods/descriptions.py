"""What `erase-sd methods` says of a method, read from its own file: citation, idea, settings, meanings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from . import METHODS, Method


@dataclass(frozen=True)
class Setting:
    """One hyperparameter: its default, and the sentence under it."""

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Page:
    """A method as its file describes it."""

    name: str
    citation: str
    about: str
    """Its idea, and where it differs from the paper."""
    trained: str
    rate: float | None
    """None, and no steps, where it is solved in closed form."""
    steps: int
    settings: tuple[Setting, ...]


def page_of(name: str) -> Page:
    """The page of the method of that name."""
    kind = METHODS[name]
    [body] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    meanings: dict[str, str] = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(line.target, ast.Name)
            meanings[line.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    citation, _, about = (inspect.getdoc(kind) or "").partition("\n")
    return Page(
        name,
        citation=citation,
        about=" ".join(about.split()),
        trained=kind.trained,
        rate=kind.rate if kind.solve is Method.solve else None,
        steps=kind.steps,
        settings=tuple(
            Setting(field, default, meanings.get(field, ""))
            for field, default in kind.settings().items()
        ),
    )
