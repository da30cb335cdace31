"""The grid of a comparison: concepts x method specs x seeds, checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..data.concept import joined_slug
from ..errors import SettingError
from ..methods.registry import METHODS
from ..unlearning.settings import UnlearnSettings, parse_concepts

GENERAL_SETTINGS = {"learning_rate": int | float, "steps": int, "towers": str}
"""Settings of the unlearning that a spec may set beside its method's hyperparameters."""


@dataclass(frozen=True)
class MethodSpec:
    """A method and its settings that differ from the defaults."""

    method: str
    overrides: tuple[tuple[str, int | float | str], ...] = ()
    """Sorted by name, so that equal specs are equal values."""

    @property
    def overrides_text(self) -> str:
        """The overrides as the user writes them, `consistency=embedding,learning_rate=0.001`."""
        return ",".join(f"{name}={value}" for name, value in self.overrides)

    def __str__(self) -> str:
        return f"{self.method}:{self.overrides_text}" if self.overrides else self.method

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of `UnlearnSettings`."""
        general = {name: value for name, value in self.overrides if name in GENERAL_SETTINGS}
        hyperparameters = {n: value for n, value in self.overrides if n not in GENERAL_SETTINGS}
        return {"method": self.method, "hyperparameters": hyperparameters} | general


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    concepts: tuple[str, ...]
    spec: MethodSpec
    seed: int
    folder: Path
    """Its run folder."""

    @property
    def concept(self) -> str:
        """The concepts as one name, `apple+chair`."""
        return "+".join(self.concepts)

    def __str__(self) -> str:
        return f"{self.concept} {self.spec} seed {self.seed}"

    def settings(self) -> UnlearnSettings:
        """Settings that the run is unlearned with; SettingError if they cannot be used."""
        return UnlearnSettings(
            concepts=parse_concepts(self.concepts), seed=self.seed, **self.spec.settings
        )


MAX_SEEDS = 1000


def cells_of(
    concepts: Sequence[str], methods: Sequence[str], seeds: int, out: Path
) -> tuple[Cell, ...]:
    """The cells in the order they run: seed by seed, so that an interrupted grid fills whole tables.

    Each entry of `concepts` and `methods` may be a list with commas; concepts joined by "+" are erased
    in one run. Raises SettingError for what no run could use.
    """
    names = dict.fromkeys(
        name.strip() for text in concepts for name in text.split(",") if name.strip()
    )
    # A comma before name=value continues the spec, any other comma starts the next one.
    specs = dict.fromkeys(
        parse_spec(spec.strip()) for text in methods for spec in re.split(r",(?!\s*\w+=)", text)
    )
    if not names:
        raise SettingError("needs at least one word", field="concepts")
    if not specs:
        raise SettingError(f"needs at least one of {', '.join(METHODS)}", field="methods")
    if not 1 <= seeds <= MAX_SEEDS:
        raise SettingError(f"needs 1 to {MAX_SEEDS}, got {seeds}", field="seeds")
    cells = tuple(
        _cell(tuple(word.strip() for word in name.split("+")), spec, seed, out)
        for seed in range(seeds)
        for spec in specs
        for name in names
    )
    for cell in cells:
        _check(cell)
    return cells


def _cell(concepts: tuple[str, ...], spec: MethodSpec, seed: int, out: Path) -> Cell:
    spec_folder = str(spec).replace(":", "+").replace(",", "+")
    folder = out / "runs" / joined_slug(concepts) / spec_folder / f"seed-{seed}"
    return Cell(concepts, spec, seed, folder)


def _check(cell: Cell) -> None:
    """Raises SettingError, naming the concepts or the spec at fault, for a cell that cannot run."""
    try:
        cell.settings()
    except SettingError as error:
        if error.field in ("concept", "concepts"):
            raise
        raise SettingError(str(error), field="methods", value=cell.spec) from None


def parse_spec(text: str) -> MethodSpec:
    """Parses `method` or `method:name=value,name=value`.

    Raises SettingError, with similar names, for an unknown method or setting.
    """
    method, colon, rest = text.partition(":")
    if method not in METHODS:
        raise SettingError(
            f"unknown{_similar(method, list(METHODS))}", field="methods", value=method
        )
    overrides: dict[str, int | float | str] = {}
    for override in rest.split(",") if colon else ():
        parts = re.fullmatch(r"\s*(\w+)=([\w.+-]+)\s*", override)
        if not parts:
            raise SettingError("needs method:name=value,name=value", field="methods", value=text)
        name, value = parts.groups()
        known = [*METHODS[method].hyperparameters(), *GENERAL_SETTINGS]
        if name not in known:
            rule = f"{method} has no setting {name}{_similar(name, known)}"
            raise SettingError(rule, field="methods", value=text)
        overrides[name] = _number_or_text(value)
        if not isinstance(overrides[name], GENERAL_SETTINGS.get(name, object)):
            raise SettingError(f"{name} cannot be {value}", field="methods", value=text)
    return MethodSpec(method, tuple(sorted(overrides.items())))


def _similar(word: str, known: list[str]) -> str:
    similar = get_close_matches(word, known, n=3, cutoff=0.5)
    return f", similar: {', '.join(similar)}" if similar else f"; needs one of {', '.join(known)}"


def _number_or_text(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
