"""Which images a run needs: one per prompt and seed, in batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.concept import Concept
from ..data.pair import CaptionPair
from ..data.prompts import PromptFile
from ..data.removal import remove_concepts_from
from ..errors import DataError
from ..files import is_encodable

MAX_STEM = 200  # file systems allow 255 bytes, of which numbers and endings take some
MAX_IMAGES = 1_000_000  # of each variant; the seeds of a run leave room for as many


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
    prompts: Sequence[PromptFile], concepts: Sequence[Concept], images_per_prompt: int, seed: int
) -> list[PlannedImage]:
    """The images of prompt files; image k of prompt p has seed `seed + p * images_per_prompt + k`.

    Raises DataError if two files have the same name, if no image can be named after a file, or if there
    are too many images.
    """
    names = [file.stem for file in prompts]
    for name in names:
        if not is_encodable(name) or len(name.encode()) > MAX_STEM:
            rule = f"names of prompt files name images; needs UTF-8 of at most {MAX_STEM} bytes"
            raise DataError(rule, field="prompts", value=repr(name))
    if len(set(names)) < len(names):
        raise DataError(f"two files have the same name ({', '.join(names)})", field="prompts")
    count = images_per_prompt * sum(len(file.texts) for file in prompts)
    if count > MAX_IMAGES:
        rule = (
            f"{count:,} images of each variant, at most {MAX_IMAGES:,} can be generated in one run"
        )
        raise DataError(rule, field="prompts", value=", ".join(names))
    images = []
    for prompt_file in prompts:
        pairs = prompt_file.pairs(concepts)
        repeated = (pair for pair in pairs for _ in range(images_per_prompt))
        for number, pair in enumerate(repeated):
            file, stem = f"{prompt_file.stem}-{number:04}.png", prompt_file.stem
            images.append(PlannedImage(file=file, prompt_file=stem, pair=pair, seed=seed + number))
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
