"""Zero-shot measures: how well the prompts of a class find its images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.classes import prompt_of
from ..data.pair import CONCEPT_SETS
from ..runtime import log
from . import measures
from .embedders import Embedder
from .galleries import Gallery
from .measures import Estimates


def class_prompts(gallery: Gallery, templates: Sequence[str]) -> list[list[str]]:
    """Prompts of each class of the gallery, in order.

    Empty, with a warning, unless the gallery has both a class to forget and one to retain.
    """
    classes = gallery.classes
    if len({name in gallery.forget_classes for name in classes}) < 2:
        log.warning(
            "%s: the zero-shot measures are left out; they need an image whose captions name the "
            "concept and no other COCO class, and one whose captions name only another class",
            gallery.folder,
        )
        return []
    return [[prompt_of(template, name) for template in templates] for name in classes]


def zero_shot(
    embedder: Embedder, gallery: Gallery, prompts: Sequence[Sequence[str]], images: Tensor
) -> Estimates:
    """Measures over the images that have a class.

    `zero_shot_prediction` is the share of images to which the prompts of their own class are
    nearest; `zero_shot_retrieval` is the mean average precision of the classes, each a query for its
    images. `prompts` are (classes, templates), `images` the features of all images, (images, d).
    """
    classes = gallery.classes
    labelled = [i for i, image in enumerate(gallery.images) if image.label is not None]
    truth = torch.tensor([[gallery.images[i].label == name for name in classes] for i in labelled])
    flat = embedder.embed_texts([prompt for of_class in prompts for prompt in of_class])
    features = measures.class_features(flat.view(len(classes), -1, flat.shape[-1]))
    similarity = images[labelled] @ features.T  # (labelled, classes)
    hits = measures.ranks(similarity, truth) == 1
    precision = torch.tensor(
        [
            measures.average_precision(scores, correct)
            for scores, correct in zip(similarity.T, truth.T, strict=True)
        ]
    )
    forget = torch.tensor([name in gallery.forget_classes for name in classes])
    estimates: Estimates = {}
    for concept_set, chosen in zip(CONCEPT_SETS, (forget, ~forget), strict=True):
        if chosen.any():
            queries = truth[:, chosen].any(1)
            estimates["zero_shot_prediction", concept_set] = measures.estimate_share(hits[queries])
            estimates["zero_shot_retrieval", concept_set] = measures.estimate_mean(
                precision[chosen], 1.0
            )
    return estimates
