"""All CLIP-side measures of the original and the erased model over one gallery."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.concept import Concept
from ..models.blip import Blip
from ..run.records import Variant
from ..runtime import Progress, in_batches
from ..sharing import each
from .drift import drift, drift_texts
from .embedders import EMBEDDING_BATCH, Embedder
from .galleries import Gallery
from .galleries.gallery import GalleryImage
from .measures import DRIFT_GROUPS, Estimates
from .retrieval import RECALL_AT, retrieval, unique_captions
from .zero_shot import class_prompts, zero_shot

MEASURES = (
    "zero_shot_prediction", "zero_shot_retrieval",
    *(f"{answers}_retrieval_r{k}" for answers in ("image", "text") for k in RECALL_AT),
    *(f"drift_{group}" for group in DRIFT_GROUPS),
)  # fmt: skip


def measure(
    variants: dict[Variant, Embedder],
    gallery: Gallery,
    concepts: tuple[Concept, ...],
    templates: Sequence[str],
    progress: Progress | None,
) -> dict[Variant, Estimates]:
    """Every measure of each variant that the gallery allows; a warning names those it does not."""
    original = variants["original"]
    captions = unique_captions(gallery, original.token_limit)
    prompts = class_prompts(gallery, templates)
    features = _image_features(variants, gallery, progress)
    estimates: dict[Variant, Estimates] = {variant: {} for variant in variants}
    for variant, embedder in variants.items():
        if prompts:
            estimates[variant] |= zero_shot(embedder, gallery, prompts, features[variant])
        if captions:
            estimates[variant] |= retrieval(embedder, gallery, captions, features[variant])
    erased = variants.get("erased")
    if erased and not isinstance(original.clip, Blip):
        if not captions:  # a class prompt's subject is its class, whatever the concept is called
            concepts += tuple(Concept(name) for name in sorted(gallery.forget_classes))
        texts = drift_texts(gallery, captions, prompts)
        estimates["erased"] |= drift(original.clip, erased.clip, texts, concepts)
    return estimates


def _image_features(
    variants: dict[Variant, Embedder], gallery: Gallery, progress: Progress | None
) -> dict[Variant, Tensor]:
    """Image features of each variant, (images, d).

    Variants with the same image tower share them; the original's come from the cache if the gallery
    has one.
    """
    original = variants["original"]
    features: dict[Variant, Tensor] = {}
    for variant, embedder in variants.items():
        if variant != "original" and embedder.image_tower is original.image_tower:
            features[variant] = features["original"]
        elif variant == "original" and gallery.features:
            features[variant] = gallery.features(original.clip)
        else:
            features[variant] = _embed_images(variant, embedder, gallery, progress)
    return features


def _embed_images(
    variant: Variant, embedder: Embedder, gallery: Gallery, progress: Progress | None
) -> Tensor:
    """Features of all images; processes in step share the batches."""

    def embed(images: Sequence[GalleryImage]) -> Tensor:
        return embedder.embed_images([image.open() for image in images])

    def embed_batch(start: int) -> Tensor:
        batch = gallery.images[start : start + EMBEDDING_BATCH]
        rows = [features for _, features in in_batches(batch, EMBEDDING_BATCH, embed)]
        if progress:
            progress(start + len(batch), len(gallery.images), f"{variant} images")
        return torch.cat(rows)

    return torch.cat(each(range(0, len(gallery.images), EMBEDDING_BATCH), embed_batch))
