"""Mentions that nobody listed: what else the captions of the forget images call the concept.

The features of captions that name the concept, minus those of the same captions without it, give the
concept's direction. Phrases of the forget images' other captions that are rare elsewhere are candidates
(`data.phrases`); a mention is one whose removal takes those captions' features back along the direction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..data.concept import Concept
from ..data.dataset import Dataset
from ..data.pair import CaptionPair
from ..data.phrases import MIN_CAPTIONS, Phrase, Rows, frequent_phrases, span_of
from ..data.removal import remove_concepts_from, remove_spans
from ..data.split import ConceptSets, split_by_concept
from ..data.syntax import parse
from ..data.tree import Tree
from ..models.clip import Clip
from ..models.presets import Models
from ..models.quiet import quiet_libraries
from ..models.text_encoder import load_clip

_T = TypeVar("_T")

SHARE = 0.7
"""Minimum drop along the concept's direction, as a share of the mean drop when the name is removed."""
NAMED = 512
"""Maximum number of captions that the direction is averaged over."""
SCORED = 24
"""Maximum number of captions that a phrase is removed from."""
MAX_CAPTIONS = 4000
"""Maximum number of captions of forget images that are searched."""

Mentions = Mapping[str, Mapping[str, int]]
"""By concept: phrases that mean it, and in how many training captions each was found."""


def mine_mentions(clip: Clip, sets: ConceptSets, concepts: Sequence[Concept]) -> Mentions:
    """The phrases that mean each concept, by the training captions alone.

    Phrases that contain a sense to keep are left out.
    """
    pairs = _fitting(clip, sets.pairs("forget", "train"))
    retain = [pair.caption for pair in sets.pairs("retain", "train")]
    return {concept.name: _mine(clip, concept, pairs, retain) for concept in concepts}


def mentions_of(models: Models, data: Dataset, concepts: Sequence[Concept]) -> Mentions:
    """`mine_mentions` with the first CLIP of `models`."""
    quiet_libraries()
    clip = load_clip(models.clip_folder(0))
    return mine_mentions(clip, split_by_concept(data.items, concepts), concepts)


def with_mentions(concepts: Sequence[Concept], mentions: Mentions) -> tuple[Concept, ...]:
    """The concepts with the mined phrases among their synonyms."""
    return tuple(
        dataclasses.replace(
            c, synonyms=tuple(dict.fromkeys((*c.synonyms, *mentions.get(c.name, ()))))
        )
        for c in concepts
    )


def mention_lines(mentions: Mentions) -> list[str]:
    """One line per concept: its mined phrases, the most frequent first."""
    lines = []
    for name, phrases in mentions.items():
        ordered = sorted(phrases.items(), key=lambda item: (-item[1], item[0]))
        words = ", ".join(f"{phrase} ({count})" for phrase, count in ordered)
        lines.append(f"{name}: other mentions: {words or 'none; its name and synonyms are erased'}")
    return lines


def _fitting(clip: Clip, pairs: Sequence[CaptionPair]) -> list[CaptionPair]:
    fits = clip.token_limit.fitting([pair.caption for pair in pairs])
    return [pair for pair, within in zip(pairs, fits, strict=True) if within]


def _mine(
    clip: Clip, concept: Concept, pairs: Sequence[CaptionPair], retain: Sequence[str]
) -> dict[str, int]:
    named = [pair for pair in pairs if concept.name in pair.mentions]
    images = {pair.image for pair in named}
    others = [pair.caption for pair in pairs if pair.image in images and not pair.mentions]
    if not others:  # nor are there any if no caption names it
        return {}
    others = _spread(others, MAX_CAPTIONS)
    direction = concept_direction(clip, [pair.caption for pair in _spread(named, NAMED)], concept)
    trees = list(parse(others))
    kept = [Concept(sense) for sense in concept.keep_senses]
    rows = {
        phrase: own
        for phrase, own in frequent_phrases(others, trees, retain).items()
        if not any(sense.in_text(" ".join(phrase)) for sense in kept)
    }
    drops = _drops(clip, others, trees, rows, direction)
    return _cover({phrase: rows[phrase] for phrase in sufficient(drops)})


def _cover(rows: Rows) -> dict[str, int]:
    """The most frequent phrases first, as long as they explain captions that none before explains.

    So "pippin" wins over "red pippin", and "leaf on the street" is nothing new in captions with "fruit
    with a leaf".
    """
    explained: set[int] = set()
    mentions = {}
    for phrase, own in sorted(rows.items(), key=lambda item: (-len(item[1]), len(item[0]), item)):
        if len(set(own) - explained) >= MIN_CAPTIONS:
            explained |= set(own)
            mentions[" ".join(phrase)] = len(own)
    return mentions


def concept_direction(clip: Clip, captions: Sequence[str], concept: Concept) -> Tensor:
    """Mean of (caption - caption without the concept) over unit-norm features, (projection,)."""
    removed = [text for text, _ in remove_concepts_from(captions, [concept])]
    return (_features(clip, captions) - _features(clip, removed)).mean(0)


def _drops(
    clip: Clip, captions: Sequence[str], trees: Sequence[Tree], rows: Rows, direction: Tensor
) -> dict[Phrase, Tensor]:
    """How far captions move back along the direction when a phrase is removed from them, as a share of the
    mean drop when the name is removed, (captions,), by phrase."""
    scored = [(phrase, row) for phrase, own in rows.items() for row in _spread(own, SCORED)]
    if not scored:
        return {}
    texts = [
        remove_spans(captions[row], trees[row], [span_of(phrase, captions[row])])[0]
        for phrase, row in scored
    ]
    before = _features(clip, [captions[row] for _, row in scored])
    drop = (before - _features(clip, texts)) @ direction / direction.square().sum()
    sizes = [min(len(own), SCORED) for own in rows.values()]
    return dict(zip(rows, torch.split(drop, sizes), strict=True))


def sufficient(drops: Mapping[Phrase, Tensor]) -> list[Phrase]:
    """The phrases whose mean drop is at least SHARE beyond chance: by the lower end of its one-sided
    95 % confidence interval, with the variance within phrases pooled."""
    if not drops:
        return []
    within = torch.cat([own - own.mean() for own in drops.values()])
    freedom = max(len(within) - len(drops), 1)
    deviation = float((within.square().sum() / freedom).sqrt())
    return [
        phrase
        for phrase, own in drops.items()
        if float(own.mean()) - 1.645 * deviation / len(own) ** 0.5 >= SHARE
    ]


def _spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most `most` of the items, evenly spread."""
    step = max(len(items) / most, 1)
    return [items[int(i * step)] for i in range(min(len(items), most))]


def _features(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Unit-norm features on the CPU, (n, projection)."""
    distinct = list(dict.fromkeys(texts))
    features = clip.encode_texts(clip.cut(clip.tokens(distinct)))[0].cpu()
    row = {text: number for number, text in enumerate(distinct)}
    return features[torch.tensor([row[text] for text in texts])]
