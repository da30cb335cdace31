"""The grid of a comparison: concepts x method specs x seeds, checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..methods import METHODS
from ..run import folder_of
from ..unlearning.settings import Settings, concepts_from

OWN = {"rate": int | float, "steps": int, "towers": str}
"""Settings of the unlearning itself that a spec may name beside its method's fields."""


@dataclass(frozen=True)
class Spec:
    """A method and the settings in which a column of the grid differs from its defaults."""

    method: str
    overrides: tuple[tuple[str, int | float | str], ...] = ()
    """Sorted by name, so that one choice has one spelling."""

    @property
    def text(self) -> str:
        """The overrides as they are given, `consistency=embedding,rate=0.001`."""
        return ",".join(f"{name}={value}" for name, value in self.overrides)

    def __str__(self) -> str:
        return f"{self.method}:{self.text}" if self.overrides else self.method

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of `erase_sd.unlearning.settings.Settings`."""
        own = {name: value for name, value in self.overrides if name in OWN}
        weights = {name: value for name, value in self.overrides if name not in OWN}
        return {"method": self.method, "weights": weights} | own


@dataclass(frozen=True)
class Cell:
    """One run of the grid: what it erases, how, from which seed, and its run folder."""

    concepts: tuple[str, ...]
    spec: Spec
    seed: int
    folder: Path

    @property
    def concept(self) -> str:
        return "+".join(self.concepts)

    def __str__(self) -> str:
        return f"{self.concept} {self.spec} seed {self.seed}"

    def settings(self) -> Settings:
        """What the run is unlearned with. Raises SettingError."""
        return Settings(concepts=concepts_from(self.concepts), seed=self.seed, **self.spec.settings)


def cells_of(
    concepts: Sequence[str], methods: Sequence[str], seeds: int, out: Path
) -> tuple[Cell, ...]:
    """The cells in the order they run: seed by seed, so that an early end leaves whole tables.

    A concept may be several joined by "+". Each entry may hold several with commas between them.
    Raises SettingError for what no run could be made of.
    """
    words = dict.fromkeys(w.strip() for text in concepts for w in text.split(",") if w.strip())
    # A comma before name=value goes on with the spec, any other begins the next one.
    specs = dict.fromkeys(
        spec_of(part.strip()) for text in methods for part in re.split(r",(?!\s*\w+=)", text)
    )
    if not words:
        raise SettingError("--concepts: needs at least one word")
    if not specs:
        raise SettingError(f"--methods: needs at least one of {', '.join(METHODS)}")
    if seeds < 1:
        raise SettingError(f"--seeds: needs at least 1, got {seeds}")
    cells = []
    for seed in range(seeds):
        for spec in specs:
            for word in words:
                names = tuple(name.strip() for name in word.split("+"))
                home = folder_of(None, names).name
                folder = out / "runs" / home / str(spec).replace(":", "+").replace(",", "+")
                cells.append(Cell(names, spec, seed, folder / f"seed-{seed}"))
    for cell in cells:
        cell.settings()
    return tuple(cells)


def spec_of(text: str) -> Spec:
    """A spec from `method` or `method:field=value,field=value`.

    Raises SettingError, with the near names, for a method or a field that there is not.
    """
    method, colon, rest = text.partition(":")
    if method not in METHODS:
        raise SettingError(f"--methods {method}: unknown{_near(method, list(METHODS))}")
    overrides: dict[str, int | float | str] = {}
    for part in rest.split(",") if colon else ():
        given = re.fullmatch(r"\s*(\w+)=([\w.+-]+)\s*", part)
        if not given:
            raise SettingError(f"--methods {text}: needs method:field=value,field=value")
        name, value = given.groups()
        known = [*METHODS[method].settings(), *OWN]
        if name not in known:
            raise SettingError(f"--methods {text}: {method} has no {name}{_near(name, known)}")
        overrides[name] = _number(value)
        if not isinstance(overrides[name], OWN.get(name, object)):
            raise SettingError(f"--methods {text}: {name} cannot be {value}")
    return Spec(method, tuple(sorted(overrides.items())))


def _near(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=3, cutoff=0.5)
    return f", near: {', '.join(near)}" if near else f"; needs one of {', '.join(known)}"


def _number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
