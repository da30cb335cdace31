"""Caption pairs without a dataset: the original model generates images of grammar captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import runtime
from ..checked import cached_folder
from ..data.concept import Concept
from ..data.flickr30k import IMAGE_FOLDER
from ..data.formats import TOKEN_FILE
from ..data.grammar import FORGET_SCENES, GRAMMAR_VERSION, RETAIN_SCENES, grammar_captions
from ..files import cache_folder, key_of
from ..models.pipeline import open_pipeline, pipeline_token_limit
from ..models.presets import Models
from ..models.sampling import default_batch, generate_batch
from ..models.source import earlier_fingerprint
from ..runtime import log

if TYPE_CHECKING:
    from PIL.Image import Image

FIRST_SEED = 2_000_000
"""Seed of the first image; prompts are generated from other seeds."""
BATCH = 20
"""Maximum number of images generated at once; fewer of large ones."""
JPEG_QUALITY = 95


def synthetic_pairs(models: Models, concepts: Sequence[Concept]) -> Path:
    """A folder in Flickr30K's layout with an image of each scene's first caption.

    It is generated once and then kept in the cache.
    """
    words = [[c.name, *c.synonyms, *c.keep_senses] for c in concepts]
    scale = [GRAMMAR_VERSION, FORGET_SCENES, RETAIN_SCENES]
    solver = [models.sampler, models.steps, models.guidance, runtime.precision()]

    def kept(model: str) -> Path:
        return cache_folder() / f"synth-{key_of([model, words, scale, solver])}"

    folder = kept(models.fingerprint())
    if not folder.exists() and (before := kept(earlier_fingerprint(models.folder))).exists():
        folder = before
    return cached_folder(folder, lambda partial: _generate_pairs(partial, models, concepts))


def _generate_pairs(folder: Path, models: Models, concepts: Sequence[Concept]) -> None:
    pipe = open_pipeline(models.folder, sampler=models.sampler)
    scenes = grammar_captions(concepts, pipeline_token_limit(pipe).fits)
    names = ", ".join(concept.name for concept in concepts)
    log.info("generating %d images of captions about %s", len(scenes), names)
    (folder / IMAGE_FOLDER).mkdir()

    def generate(rows: Sequence[int]) -> list[Image]:
        prompts, seeds = [scenes[row][0] for row in rows], [FIRST_SEED + row for row in rows]
        return generate_batch(pipe, prompts, seeds, models.steps, models.guidance)

    batch = min(BATCH, default_batch(pipe))
    for rows, images in runtime.in_batches(range(len(scenes)), batch, generate):
        for row, image in zip(rows, images, strict=True):
            image.save(folder / IMAGE_FOLDER / _image_name(row), quality=JPEG_QUALITY)
    lines = [
        f"{_image_name(row)}#{number}\t{caption}\n"
        for row, captions in enumerate(scenes)
        for number, caption in enumerate(captions)
    ]
    (folder / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")


def _image_name(scene: int) -> str:
    return f"{scene:06}.jpg"
