"""The run's own held-out images, with the caption pairs that unlearning set aside."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from ...data.images import open_image
from ...data.pair import CONCEPT_SETS
from ...data.split import hash_order
from ...models.clip import Clip
from ...models.features import image_features, readable, report_unreadable
from ...models.presets import Models
from ...run import Run
from ...unlearning.pairs import concept_sets_of
from .gallery import Gallery, balanced, captioned_images, coco_classes

HELD_OUT = "the run's held-out pairs"
"""`Gallery.kind` of the run's own images."""


def held_out_gallery(run: Run, models: Models) -> Gallery:
    """The held-out images of the run, at most MAX_IMAGES of them.

    Raises RunError if the caption pairs are no longer those that the run was unlearned with.
    """
    data, sets = concept_sets_of(run, models)
    held_out = [sets.images(concept_set, "held-out") for concept_set in CONCEPT_SETS]
    names = readable(data, (image.image for image in balanced(*map(hash_order, held_out))))
    report_unreadable(data)
    pairs_of = {
        name: tuple(pairs)
        for concept_set in CONCEPT_SETS
        for name, pairs in itertools.groupby(
            sets.pairs(concept_set, "held-out"), key=lambda pair: pair.image
        )
    }

    def features(clip: Clip) -> Tensor:
        table = image_features(clip, data, names)
        return torch.stack([table[name] for name in names])

    return Gallery(
        kind=HELD_OUT,
        folder=data.folder,
        digest=data.digest,
        images=captioned_images(
            (pairs_of[name], functools.partial(open_image, data.path_of(name))) for name in names
        ),
        forget_classes=coco_classes(run.unlearned().concepts),
        details={"held_out": sum(map(len, held_out)), "unreadable": sorted(data.unreadable)},
        features=features,
    )
