"""The unlearning methods by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from .base import ClosedFormMethod, Method

    MethodClass = type[Method] | type[ClosedFormMethod]

MethodName = Literal[
    "cliperase",
    "cliperase-anchored",
    "cliperase-hardened",
    "ga",
    "graddiff",
    "kl",
    "npo",
    "emmn",
    "lipschitz",
    "multidelete",
    "hirm",
    "projection",
    "uce",
    "rece",
    "esd",
    "concept-ablation",
    "forget-me-not",
    "few-shot",
    "advunlearn",
]
"""A method's file has its name, with underscores for hyphens, and defines one class."""


class _Methods(Mapping[str, "MethodClass"]):
    """Imports a method's file, and with it PyTorch, only when the method is used."""

    def __getitem__(self, name: str) -> MethodClass:
        if name not in get_args(MethodName):
            raise KeyError(name)
        module = import_module(f"{__package__}.{name.replace('-', '_')}")
        [method] = (
            value
            for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__
        )
        return method

    def __iter__(self) -> Iterator[str]:
        return iter(get_args(MethodName))

    def __len__(self) -> int:
        return len(get_args(MethodName))

    def __contains__(self, name: object) -> bool:
        return name in get_args(MethodName)


METHODS: Mapping[str, MethodClass] = _Methods()
"""The class of each method."""
