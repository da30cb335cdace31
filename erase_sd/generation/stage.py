"""The generate stage: images of the original and the erased model from the same noise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import runtime
from ..data import parses
from ..data.concept import Concept
from ..data.kinds import check_kind_files
from ..data.prompts import PromptFile, read_prompt_file, warn_of_names
from ..errors import ModelError
from ..files import key_of, write_records
from ..models import erased
from ..models.pipeline import image_size, open_pipeline, pipeline_token_limit, swap
from ..models.presets import Models
from ..models.quiet import quiet_libraries
from ..models.sampling import default_batch
from ..models.t5 import denoising_model
from ..run import Run
from ..run.records import ErasureRecord, ImageRecord, Variant
from ..runtime import Approval, Progress, log
from .batch import ImageBatch, Pngs, hashes_on_disk, write_batch
from .cost import announce, check_image_space
from .plan import PlannedImage, batches_of, plan, reference_texts
from .settings import GenerateSettings
from .share import Share
from .write_behind import WriteBehind

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True)
class _VariantPlan:
    """A variant of the model, and the text it generates each image from, where it generates one."""

    name: Variant
    weights: str
    """Hash of the weights that it adds to the pipeline."""
    modules: Mapping[str, Any]
    """What it puts into the pipeline, by name."""
    texts: Mapping[PlannedImage, str]


def generate(
    prompts: Sequence[Path],
    settings: GenerateSettings,
    models: Models,
    run: Run,
    progress: Progress | None = None,
    reference: bool = False,
    approve: Approval | None = None,
) -> list[ImageRecord]:
    """Generates every prompt with the original and the erased model; returns `images.jsonl`.

    Each also encodes the empty prompt of classifier-free guidance (SDXL takes zeros instead). With
    `reference`, the original also generates the concept-removed prompts, from the same seeds. The
    original's images are shared between runs through the cache. If memory runs out, every variant
    starts over with batches of half the size. Of several processes (`Share`), the first writes the run,
    and the others return nothing. Before MANY_IMAGES or more, their number and time are logged and
    `approve` is called. Raises RunError if the run was not unlearned from `models`, DataError if a prompt
    file cannot be used, and SettingError if a kind file belongs to none of the run's concepts.
    """
    concepts = run.unlearned().concepts
    quiet_libraries()
    files = _read(prompts, concepts)
    erasure = erased.check_base(run, models)
    images = plan(files, concepts, settings.images_per_prompt, settings.seed)
    pipe = open_pipeline(models.folder, settings.dtype, settings.sampler or models.sampler)
    limit = pipeline_token_limit(pipe)
    for file in files:
        limit.check(file.texts, file.stem)
    variants = _variants(pipe, run, erasure, images, concepts if reference else ())
    parses.forget()  # of the reference prompts
    shape = _shape(pipe, settings, models, erasure.base.fingerprint)
    stage = shape | {
        "erased": erasure.weights_sha256,
        "prompts": {file.path.name: file.sha256 for file in files},
        "reference": reference,
    }
    total = sum(len(variant.texts) for variant in variants)
    check_image_space(run.folder, total, shape["size"])
    share = Share.of_process(run.folder)
    if not share.writes:
        with share.present():
            return _generate_all(pipe, variants, images, shape, run, None, share)
    announce(run.folder, pipe, total, shape["steps"], shape["guidance"], approve)
    with run.stage("generate", stage) as entry:
        records = _generate_all(pipe, variants, images, shape, run, progress, share)
        entry["batch"] = shape["batch"]
        _remove_stale(run, records)
        share.clear()
    return records


def _read(prompts: Sequence[Path], concepts: Sequence[Concept]) -> list[PromptFile]:
    check_kind_files(prompts, [concept.name for concept in concepts])
    files = [read_prompt_file(path) for path in prompts]
    warn_of_names(files, concepts)
    return files


def _variants(
    pipe: DiffusionPipeline,
    run: Run,
    erasure: ErasureRecord,
    images: Sequence[PlannedImage],
    removed: Sequence[Concept],
) -> list[_VariantPlan]:
    """Original, reference if there are concepts to be `removed` from its prompts, and erased."""
    texts = {image: image.prompt for image in images}
    original = _VariantPlan(
        name="original",
        weights=erasure.base.fingerprint,
        modules={name: getattr(pipe, name) for name in erasure.weights_sha256},
        texts=texts,
    )
    # In the pipeline's precision, so that weights it cannot hold are refused before the first image.
    unlearned = _VariantPlan(
        name="erased",
        weights=key_of(erasure.weights_sha256),
        modules=erased.load_all(run.folder, dtype=denoising_model(pipe).dtype),
        texts=texts,
    )
    if not removed:
        return [original, unlearned]
    reference = replace(original, name="reference", texts=reference_texts(images, removed))
    return [original, reference, unlearned]


def _shape(
    pipe: DiffusionPipeline, settings: GenerateSettings, models: Models, fingerprint: str
) -> dict[str, Any]:
    """Everything that shapes an image except its text, its seed and what the variant swaps in."""
    size, versions = image_size(pipe), runtime.versions()
    return settings.with_defaults_of(models) | {
        "size": size,
        "batch": settings.batch or default_batch(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "model": fingerprint,
        "device": pipe.device.type,
        "versions": {name: versions[name] for name in ("torch", "diffusers", "transformers")},
    }


def _generate_all(
    pipe: DiffusionPipeline,
    variants: Sequence[_VariantPlan],
    images: Sequence[PlannedImage],
    shape: dict[str, Any],
    run: Run,
    progress: Progress | None,
    share: Share,
) -> list[ImageRecord]:
    """All images; halves `shape["batch"]` and starts over each time memory runs out."""
    while True:
        try:
            batches = _batches(variants, images, shape)
            return _generate_batches(pipe, batches, run, progress, share)
        except Exception as error:
            if not runtime.is_out_of_memory(error):
                raise
            if shape["batch"] == 1:
                raise ModelError("out of memory with one image", field="model") from None
            if share.count > 1:  # the others would go on with the larger batches
                raise ModelError("out of memory; needs smaller batches", field="batch") from None
            shape["batch"] //= 2
        runtime.free_memory()
        log.warning("out of memory; starting over with %s images per batch", shape["batch"])


def _batches(
    variants: Sequence[_VariantPlan], images: Sequence[PlannedImage], shape: Mapping[str, Any]
) -> list[tuple[_VariantPlan, list[ImageBatch]]]:
    """Each variant's batches; those in which it generates nothing are left out."""
    planned = []
    for variant in variants:
        batches = [
            ImageBatch(
                variant=variant.name,
                weights=variant.weights,
                number=number,
                texts={image: variant.texts[image] for image in batch if image in variant.texts},
                shape=shape,
            )
            for number, batch in enumerate(batches_of(images, shape["batch"]))
        ]
        planned.append((variant, [batch for batch in batches if batch.texts]))
    return planned


def _generate_batches(
    pipe: DiffusionPipeline,
    planned: Sequence[tuple[_VariantPlan, list[ImageBatch]]],
    run: Run,
    progress: Progress | None,
    share: Share,
) -> list[ImageRecord]:
    """Completes every batch, each written while the next is generated.

    `images.jsonl` grows with each. Empty for a process that does not write.
    """
    keys = {batch.key for _, batches in planned for batch in batches}
    earlier = {record.file: record for record in run.images() if record.batch_key in keys}
    total = sum(len(batch.texts) for _, batches in planned for batch in batches)
    records: list[ImageRecord] = []
    index, done = itertools.count(), 0
    with WriteBehind(share.count) as behind:  # of which one is this process's own
        for variant, batches in planned:
            swap(pipe, variant.modules)
            for batch in batches:
                number, hashes = next(index), hashes_on_disk(batch, run, earlier)
                pngs = list if hashes else share.pngs(number, batch, pipe, behind.stopped)
                write = functools.partial(_write, batch, hashes, pngs, run, records, earlier)
                done += len(batch.texts)
                behind.add(
                    write if share.writes else pngs,
                    functools.partial(progress, done, total, variant.name) if progress else None,
                )
    return records


def _write(
    batch: ImageBatch, hashes: list[str] | None, pngs: Pngs, run: Run,
    records: list[ImageRecord], earlier: Mapping[str, ImageRecord],
) -> None:  # fmt: skip
    """Adds a batch to `records` and `images.jsonl`; writes its images, unless `hashes` says they are there."""
    records += batch.records(hashes or write_batch(batch, pngs(), run))
    # A process that begins late, or the next one if this is killed, finds what an earlier pass left.
    done = {record.file for record in records}
    left = [record for file, record in earlier.items() if file not in done]
    write_records(run.folder / "images.jsonl", records + left)


def _remove_stale(run: Run, records: Sequence[ImageRecord]) -> None:
    """Removes images of an earlier pass that this one does not include, and the rates of that pass."""
    current = {record.file for record in records}
    for file in (run.folder / "images").rglob("*.png"):
        if file.relative_to(run.folder).as_posix() not in current:
            file.unlink()
    for name in ("scores.json", "scores.csv", "scores.md"):
        (run.folder / name).unlink(missing_ok=True)
