"""One batch of one variant: taken from the run, from the cache, or generated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.images import png_of
from ..files import digest, hash_file, key_of, write_bytes
from ..models.compiled import compile_denoiser, compiling
from ..models.sampling import generate_batch
from ..run import Run
from ..run.records import ImageRecord, Variant
from ..runtime import log
from .cache import cached_batch, image_cache, store_batch
from .plan import PlannedImage

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

Pngs = Callable[[], list[bytes]]
"""Returns a generated batch as PNGs: encodes it, or waits for it. Called in the thread that writes."""


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """The images that one variant generates together."""

    variant: Variant
    weights: str
    """Hash of the weights that the variant adds to the pipeline."""
    number: int
    texts: Mapping[PlannedImage, str]
    """What each image is generated from."""
    shape: Mapping[str, Any]
    """Everything else that shapes the images, the same for all batches of a run."""

    @functools.cached_property
    def key(self) -> str:
        """Hash of everything that shapes the batch."""
        images = [[image.file, text, image.seed] for image, text in self.texts.items()]
        return key_of([self.variant, self.weights, self.shape, images])

    @property
    def cacheable(self) -> bool:
        """Whether the original model generates it, so that other runs may need the same images."""
        return self.variant != "erased"

    def file(self, image: PlannedImage) -> str:
        """Path of an image within the run folder."""
        return f"images/{self.variant}/{image.file}"

    def records(self, hashes: list[str]) -> list[ImageRecord]:
        """Rows of `images.jsonl`, given the hashes of the images."""
        return [
            ImageRecord(
                file=self.file(image),
                variant=self.variant,
                pair=image.pair,
                prompt_file=image.prompt_file,
                text=text,
                seed=image.seed,
                steps=self.shape["steps"],
                guidance=self.shape["guidance"],
                size=self.shape["size"],
                sampler=self.shape["sampler"],
                dtype=self.shape["dtype"],
                scheduler=self.shape["scheduler"],
                weights=self.weights,
                batch=self.number,
                batch_key=self.key,
                sha256=sha256,
            )
            for (image, text), sha256 in zip(self.texts.items(), hashes, strict=True)
        ]


def hashes_on_disk(
    batch: ImageBatch, run: Run, earlier: Mapping[str, ImageRecord]
) -> list[str] | None:
    """Hashes of the batch's images if an earlier pass left all of them intact, else None."""
    hashes = []
    for image in batch.texts:
        before, path = earlier.get(batch.file(image)), run.folder / batch.file(image)
        if before is None or before.batch_key != batch.key or not path.is_file():
            return None
        if hash_file(path) != before.sha256:
            return None
        hashes.append(before.sha256)
    return hashes


def write_batch(batch: ImageBatch, pngs: Sequence[bytes], run: Run) -> list[str]:
    """Writes the batch's images into the run folder; returns their hashes."""
    for image, data in zip(batch.texts, pngs, strict=True):
        write_bytes(run.folder / batch.file(image), data)
    return [digest(data) for data in pngs]


def generate_pngs(batch: ImageBatch, pipe: DiffusionPipeline) -> Pngs:
    """Generates the images, unless the cache has the original's; the result encodes and caches them."""
    if batch.cacheable:
        cached = cached_batch(image_cache(), batch.key, len(batch.texts))
        if cached:
            return lambda: cached
    return functools.partial(_encode, batch, _generated(batch, pipe))


def _generated(batch: ImageBatch, pipe: DiffusionPipeline) -> list[Image]:
    texts, seeds = list(batch.texts.values()), [image.seed for image in batch.texts]
    steps, guidance = batch.shape["steps"], batch.shape["guidance"]
    if not batch.shape.get("compiled"):
        return generate_batch(pipe, texts, seeds, steps, guidance)
    missing = batch.shape["batch"] - len(texts)
    compile_denoiser(pipe)
    with compiling():
        images = generate_batch(
            pipe, texts + missing * texts[-1:], seeds + missing * seeds[-1:], steps, guidance
        )
    return images[: len(texts)]


def _encode(batch: ImageBatch, images: Sequence[Image]) -> list[bytes]:
    """The images as PNGs; the original's are cached."""
    pngs = [png_of(image) for image in images]
    if batch.cacheable:
        try:
            store_batch(image_cache(), batch.key, pngs)
        except OSError as error:
            _say_not_cached(image_cache(), error.strerror or str(error))
    return pngs


@functools.cache
def _say_not_cached(folder: Path, why: str) -> None:
    """Once, not for every batch."""
    log.warning("%s: the original's images are not cached (%s)", folder, why)
