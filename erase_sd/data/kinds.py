"""Kinds of prompts beside the plain ones, told by their files: `prompts/<concept>.<kind>.txt`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ..errors import SettingError

Kind = Literal["synonym", "name-free", "look-alike", "other-sense"]
KINDS: tuple[Kind, ...] = ("synonym", "name-free", "look-alike", "other-sense")
MEANT: tuple[Kind, ...] = ("synonym", "name-free")
"""Of these the concept is what is meant, though its own word is not there."""


def read_name(prompts: str) -> tuple[str, Kind | None]:
    """Concept and kind, of a prompt file's name less `.txt`: `apple.synonym`; None: a plain file."""
    concept, _, last = prompts.rpartition(".")
    for kind in KINDS:
        if concept and kind == last:
            return concept, kind
    return prompts, None


def is_of(concept: str, name: str) -> bool:
    """Whether a file named after `concept` is that of `name`: `hot-dog` is of "hot dog"."""
    return _words(concept) == _words(name)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def beside(prompts: Sequence[Path]) -> list[Path]:
    """The kind files that lie beside prompt files. Raises SettingError where there is none."""
    places = [path.with_name(f"{path.stem}.{kind}.txt") for path in prompts for kind in KINDS]
    found = [path for path in places if path.is_file()]
    if not found:
        raise SettingError(f"--kinds: needs one of {', '.join(map(str, places))}; there is none")
    return found


def check(prompts: Iterable[Path], concepts: Sequence[str]) -> None:
    """SettingError for a kind file that is named after none of the run's `concepts`."""
    for path in prompts:
        concept, kind = read_name(path.stem)
        if kind and not any(is_of(concept, name) for name in concepts):
            raise SettingError(
                f"--prompts {path}: its {kind} prompts are of none of the run's concepts; needs "
                f"<concept>.{kind}.txt, concept one of {', '.join(concepts)}"
            )
