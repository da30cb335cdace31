"""What `erase-sd run` checks before it begins, so that nothing fails after hours of unlearning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.prompts import PromptFile
    from ..models.presets import Models


def prompt_files(prompts: Sequence[Path] | None, concepts: Sequence[str]) -> list[Path]:
    """The prompt files that were named, or the concepts' own.

    Standard input is read here, so that child processes have it too.
    """
    from ..data.prompts import STANDARD_INPUT, find_prompts, locate_prompts, read_prompt_file

    files = list(map(locate_prompts, prompts) if prompts else map(find_prompts, concepts))
    for file in set(files).intersection(STANDARD_INPUT):
        read_prompt_file(file)
    return files


def images_of_run(
    files: Sequence[Path],
    kinds: bool,
    concepts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    settings: Mapping[str, Any],
    sources: Mapping[str, Any],
    detector_class: Sequence[str],
) -> int:
    """How many images the original and the erased model are to generate.

    `concepts` are names, synonyms and kept senses, `settings` those of the images, `sources` the
    arguments of `models.presets.resolve`. Raises whatever a later stage would: for a prompt file that
    cannot be used or is another concept's, for settings, and for a detector that lacks a class.
    """
    from ..generation.plan import plan
    from ..generation.settings import GenerateSettings
    from ..models.presets import resolve
    from ..scoring.classes import checked_classes
    from ..unlearning.settings import parse_concepts

    models = resolve(**sources)
    models.detector_file()
    if models.model is None:
        _ = models.folder  # raises: a CLIP alone generates no images
    parsed, images = parse_concepts(*concepts), GenerateSettings(**settings)
    prompts = _read(files, kinds, [concept.name for concept in parsed], models)
    checked_classes(models, parsed, detector_class)
    return 2 * len(plan(prompts, parsed, images.images_per_prompt, images.seed))


def _read(
    files: Sequence[Path], kinds: bool, names: Sequence[str], models: Models
) -> list[PromptFile]:
    """The prompt files that `generate` would read, each prompt within the context length."""
    from ..data.kinds import check_kind_files
    from ..data.prompts import read_prompt_file, with_files_beside
    from ..models.tokens import token_limit_of

    named = with_files_beside(files, kinds)
    check_kind_files(named, names)
    prompts = [read_prompt_file(file) for file in named]
    limit = token_limit_of(models)
    for file in prompts:
        limit.check(file.texts, file.stem)
    return prompts
