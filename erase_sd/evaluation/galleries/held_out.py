"""The run's own held-out images, with the caption pairs that unlearning set aside."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.concept import Concept
from ...data.dataset import Dataset
from ...data.images import open_image
from ...data.pair import CONCEPT_SETS
from ...data.split import ConceptSets, hash_order
from ...models.clip import Clip
from ...models.features import image_features, readable, report_unreadable
from ...models.presets import Models
from ...run import Run
from ...unlearning.pairs import concept_sets_of
from .gallery import Gallery, GalleryImage, balanced, captioned_images, coco_classes

HELD_OUT = "the run's held-out pairs"
"""`Gallery.kind` of the run's own images."""


def held_out_gallery(run: Run, models: Models) -> Gallery:
    """The held-out images of the run: all of labelled data, else at most MAX_IMAGES of them.

    Raises RunError if the caption pairs are no longer those that the run was unlearned with.
    """
    data, sets = concept_sets_of(run, models)
    held_out = [sets.images(concept_set, "held-out") for concept_set in CONCEPT_SETS]
    chosen = itertools.chain(*held_out) if data.classes else balanced(*map(hash_order, held_out))
    names = readable(data, (image.image for image in chosen))
    report_unreadable(data)

    def features(clip: Clip) -> Tensor:
        table = image_features(clip, data, names)
        return torch.stack([table[name] for name in names])

    concepts = run.unlearned().concepts
    forget_classes = {item.label for item in held_out[0] if item.label is not None}
    return Gallery(
        kind=HELD_OUT,
        folder=data.folder,
        digest=data.digest,
        images=_labelled(data, sets, names)
        if data.classes
        else _captioned(data, sets, names, concepts),
        forget_classes=frozenset(forget_classes) if data.classes else coco_classes(concepts),
        details={"held_out": sum(map(len, held_out)), "unreadable": sorted(data.unreadable)},
        features=features,
    )


def _captioned(
    data: Dataset, sets: ConceptSets, names: Sequence[str], concepts: Sequence[Concept]
) -> tuple[GalleryImage, ...]:
    pairs_of = {
        name: tuple(pairs)
        for concept_set in CONCEPT_SETS
        for name, pairs in itertools.groupby(
            sets.pairs(concept_set, "held-out"), key=lambda pair: pair.image
        )
    }
    return captioned_images(
        ((pairs_of[name], functools.partial(open_image, data.path_of(name))) for name in names),
        concepts,
    )


def _labelled(data: Dataset, sets: ConceptSets, names: Sequence[str]) -> tuple[GalleryImage, ...]:
    """Images with their class and no captions, which a class shares with all of its images."""
    set_and_label = {
        item.image: (concept_set, item.label)
        for concept_set in CONCEPT_SETS
        for item in sets.images(concept_set, "held-out")
    }
    return tuple(
        GalleryImage(
            functools.partial(open_image, data.path_of(name)),
            set_and_label[name][0],
            label=set_and_label[name][1],
        )
        for name in names
    )
