"""Forget and retain sets of a dataset, each split into train, validation and held-out, by image."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ..errors import DataError
from .classes import nearest_classes
from .concept import Concept
from .dataset import CaptionedImage, Dataset
from .pair import CONCEPT_SETS, SPLITS, CaptionPair, ConceptSet, Split

MIN_SPLIT_IMAGES = 10
"""Images that each of the dataset's own splits needs to give stable measures."""


def assign_splits(items: Sequence[CaptionedImage]) -> dict[Split, tuple[CaptionedImage, ...]]:
    """The dataset's own splits if each has at least MIN_SPLIT_IMAGES images, else ours.

    Ours: 70 / 10 / 20 % of the images in the order of a hash of their names (the paper's 70 / 30,
    a third of whose 30 selects and two thirds report), at least one image each. Needs three images
    or more. No seed: all runs that erase the same concepts hold out the same images, hence the same
    prompts.
    """
    own = {split: tuple(item for item in items if item.split == split) for split in SPLITS}
    if min(map(len, own.values())) >= MIN_SPLIT_IMAGES:
        return own
    order = hash_order(items)
    validation, held_out = max(1, round(len(items) * 0.1)), max(1, round(len(items) * 0.2))
    train = len(items) - validation - held_out
    bounds = (0, train, train + validation, len(items))
    return {s: tuple(order[i:j]) for s, i, j in zip(SPLITS, bounds, bounds[1:], strict=False)}


def hash_order(items: Iterable[CaptionedImage], seed: int = 0) -> list[CaptionedImage]:
    """Images in the order of a hash of seed and name."""
    return sorted(items, key=lambda item: image_hash(item.image, seed))


def image_hash(name: str, seed: int = 0) -> bytes:
    """A hash of seed and name, by which images are ordered."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


@dataclass(frozen=True)
class ConceptSets:
    """Forget set (images with a concept in any caption) and retain set (all others), by split."""

    by_split: Mapping[tuple[ConceptSet, Split], tuple[CaptionedImage, ...]]
    mentions: Mapping[str, tuple[tuple[str, ...], ...]]
    """By image name: the names of the concepts that each caption mentions."""

    def images(self, concept_set: ConceptSet, split: Split) -> tuple[CaptionedImage, ...]:
        """Images of one set and split."""
        return self.by_split[concept_set, split]

    def pairs(self, concept_set: ConceptSet, split: Split) -> tuple[CaptionPair, ...]:
        """Caption pairs of one set and split, image by image."""
        return tuple(
            CaptionPair(
                caption=caption,
                image=item.image,
                mentions=mentions,
                set=concept_set,
                split=split,
                label=item.label,
            )
            for item in self.images(concept_set, split)
            for caption, mentions in zip(item.captions, self.mentions[item.image], strict=True)
        )

    def also_mentioned(self, concepts: Sequence[Concept]) -> ConceptSets:
        """The sets with every mention of `concepts`, which know more synonyms, in the training split.

        Training images of the retain set that any caption gives such a mention are left out.
        """
        forget = mentions_by_image(self.images("forget", "train"), concepts)
        known = mentions_by_image(self.images("retain", "train"), concepts)
        retain = [item for item in self.images("retain", "train") if not any(known[item.image])]
        by_split = {**self.by_split, ("retain", "train"): tuple(retain)}
        return replace(self, by_split=by_split, mentions={**self.mentions, **forget})

    def present(self, data: Dataset) -> ConceptSets:
        """The sets without missing image files. Raises DataError if that empties a split."""
        if not data.missing:
            return self
        present = {
            key: tuple(item for item in items if item.image in data.files)
            for key, items in self.by_split.items()
        }
        for (concept_set, split), items in present.items():
            if not items:
                raise DataError(
                    f"{len(data.missing)} of {len(data.items)} images are missing, first "
                    f"{data.missing[0]}; the {split} split of the {concept_set} set needs one",
                    field="data",
                    value=data.folder,
                )
        return replace(self, by_split=present)


def split_by_concept(items: Iterable[CaptionedImage], concepts: Sequence[Concept]) -> ConceptSets:
    """Divides images, never single captions, into forget and retain set.

    Raises DataError if a set has fewer than three images, or a concept occurs in no caption and no
    class; then the message suggests words that do.
    """
    items = list(items)
    mentions = mentions_by_image(items, concepts)
    mentioned = {name for captions in mentions.values() for names in captions for name in names}
    for concept in concepts:
        if concept.name not in mentioned:
            raise _unknown_concept(concept, items)
    forget = [item for item in items if any(mentions[item.image])]
    retain = [item for item in items if not any(mentions[item.image])]
    _check_sizes(forget, retain, ", ".join(concept.name for concept in concepts))
    by_set = {"forget": assign_splits(forget), "retain": assign_splits(retain)}
    by_split = {(s, split): by_set[s][split] for s in CONCEPT_SETS for split in SPLITS}
    return ConceptSets(by_split, mentions)


def mentions_by_image(
    items: Iterable[CaptionedImage], concepts: Sequence[Concept]
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """By image name: the names of the concepts that each caption mentions."""

    @functools.cache  # the captions of a class are those of all of its images
    def mentions_in(captions: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(c.name for c in concepts if c.in_text(text)) for text in captions)

    return {item.image: mentions_in(item.captions) for item in items}


def _check_sizes(
    forget: Sequence[CaptionedImage], retain: Sequence[CaptionedImage], names: str
) -> None:
    if not retain:
        rule = "every image mentions it; needs images without it for the retain set"
        raise DataError(rule, field="concept", value=names)
    for concept_set, items in (("forget", forget), ("retain", retain)):
        if len(items) < 3:
            rule = f"the {concept_set} set needs at least 3 images, got {len(items)}"
            raise DataError(rule, field="concept", value=names)


def _unknown_concept(concept: Concept, items: Sequence[CaptionedImage]) -> DataError:
    if classes := sorted({item.label for item in items if item.label is not None}):
        rule = f"not a class of the data; nearest: {nearest_classes(concept, classes)}"
        return DataError(rule, field="concept", value=concept.name)
    words = Counter(
        word
        for item in items
        for caption in item.captions
        for word in re.findall(r"[^\W\d_]{3,}", caption.lower())
    )
    near = get_close_matches(concept.name.lower(), words, n=5, cutoff=0.6)
    hint = (
        f"near words there: {', '.join(near)}"
        if near
        else f"words there: {', '.join(word for word, _ in words.most_common(25)[-5:])}"
    )
    return DataError(f"in no caption of the data; {hint}", field="concept", value=concept.name)
