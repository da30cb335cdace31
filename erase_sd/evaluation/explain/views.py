"""What the figures of `explain` show: a selection of held-out pairs, and how a model embeds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...data.pair import CaptionPair, ConceptSet
from ...models.tokens import Words

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PairSelection:
    """n held-out pairs with distinct images, the forget set first; k of the forget set are examples."""

    pairs: list[CaptionPair]
    examples: list[int]
    """Rows of the examples in `pairs`."""
    words: list[Words]
    """Tokens of each example's caption."""
    pixels: Tensor
    """The examples' images as the image tower reads them, (k, 3, size, size)."""

    @property
    def rows(self) -> dict[ConceptSet, slice]:
        """Rows of `pairs` by concept set."""
        forget = sum(pair.set == "forget" for pair in self.pairs)
        return {"forget": slice(forget), "retain": slice(forget, None)}


@dataclass(frozen=True)
class ModelView:
    """How one model, the original or the erased, embeds n pairs and attends to the k examples."""

    text: Tensor
    """Text features, (n, projection), unit norm."""
    image: Tensor
    """Image features, (n, projection), unit norm."""
    text_attention: list[Tensor]
    """For each example (2, tokens): the attention of `<|endoftext|>` and of the last word."""
    image_rollout: Tensor
    """Attention rollout from each patch to [CLS], (k, rows, columns)."""
    patch_similarity: Tensor
    """Cosine of each patch with the example's caption, (k, rows, columns)."""

    @property
    def pair_similarity(self) -> Tensor:
        """Cosine of each caption with its image, (n,)."""
        return (self.text * self.image).sum(-1)
