"""What is drawn: a shot for each image of each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import kinds
from ..data.concept import Concept, without
from ..data.prompts import read_prompts
from ..errors import DataError


@dataclass(frozen=True)
class Shot:
    """One image to make."""

    file: str
    prompts: str
    prompt: str
    seed: int


def plan(prompts: Sequence[Path], images_per_prompt: int, seed: int) -> list[Shot]:
    """The shots of prompt files, in their order; image k of prompt p has seed
    `seed + p * images_per_prompt + k`.

    Raises DataError for a file that cannot be used, and for two of one name.
    """
    names = [path.stem for path in prompts]
    if len(set(names)) < len(names):
        raise DataError(f"--prompts: two files of one name ({', '.join(names)})")
    shots = []
    for path in prompts:
        for p, prompt in enumerate(read_prompts(path)):
            for k in range(images_per_prompt):
                number = p * images_per_prompt + k
                file = f"{path.stem}-{number:04}.png"
                shots.append(Shot(file, path.stem, prompt, seed + number))
    return shots


def reduced(shots: Sequence[Shot], concepts: Sequence[Concept]) -> dict[Shot, str]:
    """The texts of the shots that mean a concept and mention it, with each mention's phrase out."""
    return {
        shot: without(shot.prompt, concepts)[0]
        for shot in shots
        if kinds.read_name(shot.prompts)[1] in (None, *kinds.MEANT)
        and any(concept.in_text(shot.prompt) for concept in concepts)
    }
