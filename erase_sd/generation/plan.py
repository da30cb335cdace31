"""Which images a run needs: one per prompt and seed, in batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.concept import Concept
from ..data.pair import CaptionPair
from ..data.prompts import read_prompts
from ..data.removal import remove_concepts_from
from ..errors import DataError


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """One image to generate, by every variant of the model."""

    file: str
    prompt_file: str
    """Name of the prompt file, without `.txt`."""
    pair: CaptionPair
    seed: int

    @property
    def prompt(self) -> str:
        return self.pair.caption


def plan(
    prompts: Sequence[Path], concepts: Sequence[Concept], images_per_prompt: int, seed: int
) -> list[PlannedImage]:
    """The images of prompt files; image k of prompt p has seed `seed + p * images_per_prompt + k`.

    Raises DataError if a file has no prompts, cannot be read, or shares its name with another.
    """
    names = [path.stem for path in prompts]
    if len(set(names)) < len(names):
        raise DataError(f"two files have the same name ({', '.join(names)})", field="prompts")
    images = []
    for path in prompts:
        repeated = (pair for pair in read_prompts(path, concepts) for _ in range(images_per_prompt))
        for number, pair in enumerate(repeated):
            file = f"{path.stem}-{number:04}.png"
            images.append(
                PlannedImage(file=file, prompt_file=path.stem, pair=pair, seed=seed + number)
            )
    return images


def reference_texts(
    images: Sequence[PlannedImage], concepts: Sequence[Concept]
) -> dict[PlannedImage, str]:
    """Concept-removed prompts of the images that are to show a concept and whose prompt mentions one."""
    named = [image for image in images if image.pair.set == "forget" and image.pair.mentions]
    removed = remove_concepts_from([image.prompt for image in named], concepts)
    return {image: text for image, (text, _) in zip(named, removed, strict=True)}


def batches_of(images: Sequence[PlannedImage], size: int) -> list[list[PlannedImage]]:
    """Batches of at most `size` images.

    None mixes prompt files, so that `retain.txt` has the same batches in every run.
    """
    files = [list(group) for _, group in itertools.groupby(images, key=lambda i: i.prompt_file)]
    return [file[i : i + size] for file in files for i in range(0, len(file), size)]
