"""Retrieval measures: recall of images by their captions, and of captions by their images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.pair import CONCEPT_SETS, CaptionPair
from ..errors import DataError
from ..models.tokens import TokenLimit
from ..runtime import log
from . import measures
from .embedders import Embedder
from .galleries import Gallery
from .measures import Estimates

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class UniqueCaptions:
    """The distinct captions of a gallery; all images that share a caption are correct for it."""

    pairs: list[CaptionPair]
    """One pair for each caption."""
    images: Tensor
    """(captions, images), bool: which images have the caption."""

    @property
    def texts(self) -> list[str]:
        return [pair.caption for pair in self.pairs]


def unique_captions(gallery: Gallery, limit: TokenLimit) -> UniqueCaptions | None:
    """The gallery's captions that fit the context length; None if it has no captions at all.

    Logs how many are too long. Raises DataError if all are.
    """
    pairs = {pair.caption: pair for image in gallery.images for pair in image.pairs}
    if not pairs:
        return None
    texts = [text for text, fits in zip(pairs, limit.fitting(list(pairs)), strict=True) if fits]
    if not texts:
        raise DataError(
            f"{gallery.folder}: every caption exceeds the context length of {limit.limit} tokens"
        )
    if too_long := len(pairs) - len(texts):
        log.warning(
            "%s: %d captions of more than %d tokens are left out",
            gallery.folder, too_long, limit.limit,
        )  # fmt: skip
    row_of = {text: row for row, text in enumerate(texts)}
    images = torch.zeros(len(texts), len(gallery.images), dtype=torch.bool)
    for column, image in enumerate(gallery.images):
        rows = [row_of[pair.caption] for pair in image.pairs if pair.caption in row_of]
        images[rows, column] = True
    return UniqueCaptions([pairs[text] for text in texts], images)


def retrieval(
    embedder: Embedder, gallery: Gallery, captions: UniqueCaptions, images: Tensor
) -> Estimates:
    """Recall at 1, 5 and 10. Queries are one set's captions or images; answers are those of both sets.

    `images` are the features of all images, (images, d).
    """
    similarity = embedder.embed_texts(captions.texts) @ images.T  # (captions, images)
    forget = torch.tensor([image.set == "forget" for image in gallery.images])
    estimates: Estimates = {}
    for concept_set, own in zip(CONCEPT_SETS, (forget, ~forget), strict=True):
        tasks = {
            "image": (similarity, captions.images, captions.images[:, own].any(1)),
            "text": (similarity.T, captions.images.T, own & captions.images.any(0)),
        }
        for answers, (scores, correct, queries) in tasks.items():
            if queries.any():
                ranks = measures.ranks(scores[queries], correct[queries])
                for k in RECALL_AT:
                    name = f"{answers}_retrieval_r{k}"
                    estimates[name, concept_set] = measures.estimate_share(ranks <= k)
    return estimates
