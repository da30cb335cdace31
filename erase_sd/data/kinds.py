"""Kinds of prompts, by the names of their files: `prompts/<concept>.<kind>.txt`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import SettingError
from .concept import slug
from .pair import PROMPT_KINDS, PromptKind

CONCEPT_KINDS: tuple[PromptKind, ...] = ("synonym", "name-free")
"""Kinds whose prompts mean the concept without its own word."""
_FILE_KINDS = tuple(kind for kind in PROMPT_KINDS if kind != "plain")


def parse_prompt_file_name(stem: str) -> tuple[str, PromptKind]:
    """Concept and kind of a prompt file, from its name without `.txt`: `apple.synonym`, `apple`."""
    concept, _, suffix = stem.rpartition(".")
    for kind in _FILE_KINDS:
        if concept and kind == suffix:
            return concept, kind
    return stem, "plain"


def names_concept(file_concept: str, name: str) -> bool:
    """Whether a file's concept is the concept `name`: `hot-dog` is "hot dog"."""
    return slug(file_concept) == slug(name)


def kind_files_beside(files: Sequence[Path]) -> list[Path]:
    """The kind files in the same folders as plain prompt files. Raises SettingError if there are none."""
    places = [path.with_name(f"{path.stem}.{kind}.txt") for path in files for kind in _FILE_KINDS]
    present = [path for path in places if path.is_file()]
    if not present:
        raise SettingError(
            f"needs one of {', '.join(map(str, places))}; there is none", field="kinds"
        )
    return present


def check_kind_files(files: Iterable[Path], concept_names: Sequence[str]) -> None:
    """Raises SettingError for a kind file whose concept is not among `concept_names`."""
    for path in files:
        concept, kind = parse_prompt_file_name(path.stem)
        if kind != "plain" and not any(names_concept(concept, name) for name in concept_names):
            raise SettingError(
                f"{kind} prompts of {concept}, which the run does not erase; needs "
                f"<concept>.{kind}.txt with <concept> one of {', '.join(concept_names)}",
                field="prompts",
                value=path,
            )
