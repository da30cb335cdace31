"""Mentions that nobody listed: what else the captions of the forget images call the concept.

The features of captions that name the concept, minus those of the same captions without it, give the
concept's direction. In a caption of a forget image that does not name it, the shortest noun phrase whose
removal takes the feature back along that direction, by three quarters of the mean or more, is a mention.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..data.concept import Concept
from ..data.dataset import Dataset
from ..data.pair import CaptionPair
from ..data.removal import remove_concepts_from, remove_spans
from ..data.split import ConceptSets, split_by_concept
from ..data.syntax import is_english, noun_phrases, parse
from ..models.clip import Clip
from ..models.presets import Models
from ..models.text_encoder import load_clip
from ..runtime import log

SHARE = 0.75
"""Least drop along the concept's direction, as a share of the mean drop when the name is removed."""
MIN_CAPTIONS = 2
"""Fewest captions that a phrase has to be found in; one caption alone may be chance."""

Mentions = Mapping[str, Mapping[str, int]]
"""By concept: phrases that mean it, and in how many training captions each was found."""


def mine_mentions(clip: Clip, sets: ConceptSets, concepts: Sequence[Concept]) -> Mentions:
    """The phrases that mean each concept, by the training captions of the forget set alone.

    A phrase that names a kept sense is not among them, nor one that occurs in more captions of retain
    images than of forget images, such as a look-alike's name.
    """
    pairs = _fitting(clip, sets.pairs("forget", "train"))
    retain = [pair.caption.lower() for pair in sets.pairs("retain", "train")]
    return {concept.name: _mine(clip, concept, pairs, retain) for concept in concepts}


def mentions_of(models: Models, data: Dataset, concepts: Sequence[Concept]) -> Mentions:
    """`mine_mentions` with the first CLIP of `models`."""
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


def log_mentions(mentions: Mentions) -> None:
    """Logs what was mined."""
    for line in mention_lines(mentions):
        log.info("%s", line)


def _fitting(clip: Clip, pairs: Sequence[CaptionPair]) -> list[CaptionPair]:
    fits = clip.token_limit.fitting([pair.caption for pair in pairs])
    return [pair for pair, within in zip(pairs, fits, strict=True) if within]


def _mine(
    clip: Clip, concept: Concept, pairs: Sequence[CaptionPair], retain: Sequence[str]
) -> dict[str, int]:
    named = [pair for pair in pairs if concept.name in pair.mentions]
    images = {pair.image for pair in named}
    others = [pair.caption for pair in pairs if pair.image in images and not pair.mentions]
    if not named or not others:
        return {}
    direction = concept_direction(clip, [pair.caption for pair in named], concept)
    counts = Counter(_phrases_that_fall_back(clip, others, direction, concept))
    forget = [pair.caption.lower() for pair in pairs]
    return {
        phrase: count
        for phrase, count in counts.most_common()
        if count >= MIN_CAPTIONS
        and _captions_with(phrase, retain) <= _captions_with(phrase, forget)
    }


def concept_direction(clip: Clip, captions: Sequence[str], concept: Concept) -> Tensor:
    """Mean of (caption - caption without the concept) over unit-norm features, (projection,)."""
    removed = [text for text, _ in remove_concepts_from(captions, [concept])]
    return (_features(clip, captions) - _features(clip, removed)).mean(0)


def _phrases_that_fall_back(
    clip: Clip, captions: Sequence[str], direction: Tensor, concept: Concept
) -> Iterable[str]:
    """For each caption, the shortest noun phrase that suffices, in lower case, if there is one."""
    kept = [Concept(sense) for sense in concept.keep_senses]
    rows: list[int] = []
    phrases: list[str] = []
    texts: list[str] = []
    for row, doc in enumerate(parse(captions)):
        for start, end in noun_phrases(doc) if is_english(doc) else ():
            phrase = captions[row][start:end].lower()
            if not any(sense.in_text(phrase) for sense in kept):
                rows.append(row)
                phrases.append(phrase)
                texts.append(remove_spans(captions[row], doc, [(start, end)])[0])
    if not rows:
        return []
    drop = (_features(clip, captions)[torch.tensor(rows)] - _features(clip, texts)) @ direction
    suffices = drop >= SHARE * direction.square().sum()
    winners: dict[int, str] = {}
    for row, phrase, enough in zip(rows, phrases, suffices.tolist(), strict=True):
        if enough:
            winners.setdefault(row, phrase)  # shortest first
    return winners.values()


def _captions_with(phrase: str, captions: Sequence[str]) -> int:
    near = (caption for caption in captions if phrase in caption)
    return sum(Concept(phrase).in_text(caption) for caption in near)


def _features(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Unit-norm features on the CPU, (n, projection)."""
    distinct = list(dict.fromkeys(texts))
    features = clip.encode_texts(clip.cut(clip.tokens(distinct)))[0].cpu()
    row = {text: number for number, text in enumerate(distinct)}
    return features[torch.tensor([row[text] for text in texts])]
