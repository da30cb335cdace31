"""Drift: how far an erasure moves the hidden states of texts, by group of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.concept import Concept
from ..data.pair import ConceptSet
from ..models.clip import Clip
from ..models.tokens import words_of
from ..sharing import each
from . import measures
from .embedders import EMBEDDING_BATCH
from .galleries import Gallery
from .measures import DRIFT_GROUPS, Estimates
from .retrieval import UniqueCaptions

MAX_TEXTS = 500  # per set: bounds the memory, and gives a mean to about 0.02


def drift_texts(
    gallery: Gallery, captions: UniqueCaptions | None, prompts: Sequence[Sequence[str]]
) -> dict[ConceptSet, list[str]]:
    """The texts whose drift is measured, at most MAX_TEXTS per set.

    With captions: those that mention a concept, and those of retain images. Without: the prompts of
    the classes to forget and to retain.
    """
    texts: dict[ConceptSet, list[str]] = {"forget": [], "retain": []}
    if captions is None:
        for name, of_class in zip(gallery.classes, prompts, strict=True):
            texts["forget" if name in gallery.forget_classes else "retain"] += of_class
    else:
        retain = torch.tensor([image.set == "retain" for image in gallery.images])
        for pair, images in zip(captions.pairs, captions.images, strict=True):
            if pair.mentions:
                texts["forget"].append(pair.caption)
            elif (images & retain).any():
                texts["retain"].append(pair.caption)
    return {concept_set: of_set[:MAX_TEXTS] for concept_set, of_set in texts.items()}


def drift(
    before: Clip,
    after: Clip,
    texts: dict[ConceptSet, list[str]],
    concepts: tuple[Concept, ...],
) -> Estimates:
    """`drift_<group>`: mean cosine distance between hidden states, `concepts` being the subject."""
    estimates: Estimates = {}
    for concept_set, of_set in texts.items():
        batches = [
            of_set[start : start + EMBEDDING_BATCH]
            for start in range(0, len(of_set), EMBEDDING_BATCH)
        ]
        rows = each(batches, lambda batch: _text_drift(before, after, batch, concepts))
        if not rows:
            continue
        for group, column in zip(DRIFT_GROUPS, torch.cat(rows).T, strict=True):
            values = column[~column.isnan()]
            if len(values):
                estimates[f"drift_{group}", concept_set] = measures.estimate_mean(values, 2.0)
    return estimates


def _text_drift(
    before: Clip, after: Clip, texts: list[str], concepts: tuple[Concept, ...]
) -> Tensor:
    """Drift of each text by token group, (n, groups)."""
    ids = before.tokens(texts)
    groups = torch.stack([_token_groups(before, text, concepts) for text in texts])
    states_before, states_after = (clip.encode_texts(ids)[1].cpu() for clip in (before, after))
    return measures.drift_by_group(states_before, states_after, groups)


def _token_groups(clip: Clip, text: str, concepts: tuple[Concept, ...]) -> Tensor:
    """Index in DRIFT_GROUPS of each token, (tokens,)."""
    words = words_of(clip.tokenizer, text, concepts)
    start, subject, other, end, padding = range(len(DRIFT_GROUPS))
    groups = torch.full((clip.length,), padding)
    groups[: words.end] = other
    groups[sorted(words.mentions)] = subject
    groups[0], groups[words.end] = start, end
    return groups
