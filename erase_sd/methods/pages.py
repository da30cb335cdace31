"""What `erase-sd methods` says of a method, read from its own file: citation, settings, meanings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from . import METHODS


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
    trained: str
    rate: float
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
    return Page(
        name,
        citation=(inspect.getdoc(kind) or "").split("\n")[0],
        trained=kind.trained,
        rate=kind.rate,
        steps=kind.steps,
        settings=tuple(
            Setting(field, default, meanings.get(field, ""))
            for field, default in kind.settings().items()
        ),
    )
