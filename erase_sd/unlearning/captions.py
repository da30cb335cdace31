"""Caption pairs as tokens, each with its concept-removed counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.concept import Concept, Span
from ..data.flickr30k import Dataset
from ..data.pair import SPLITS, CaptionPair, ConceptSet, Split
from ..data.removal import remove_concepts
from ..data.split import ConceptSets
from ..errors import DataError
from ..methods.base import Need, TokenizedPairs
from ..models.clip import Clip
from ..models.features import image_features
from ..runtime import log


@dataclass(frozen=True)
class TokenizedSets:
    """Tokenized pairs of the forget and the retain set, by split."""

    forget: Mapping[Split, TokenizedPairs]
    retain: Mapping[Split, TokenizedPairs]


def tokenize_sets(
    clip: Clip,
    data: Dataset,
    sets: ConceptSets,
    concepts: Sequence[Concept],
    needs: frozenset[Need],
) -> TokenizedSets:
    """Tokenizes all sets and splits, with the features that a method needs.

    Raises DataError if a split of the forget set has no caption without its concept to compare with,
    or one of the retain set has fewer than two captions.
    """
    images: dict[ConceptSet, bool] = {"forget": True, "retain": "images" in needs}
    forget, retain = (
        {
            split: tokenize_pairs(clip, data, sets.pairs(name, split), concepts, needed)
            for split in SPLITS
        }
        for name, needed in images.items()
    )
    for split in SPLITS:
        if not forget[split].mask.any():
            raise DataError(
                f"no caption of the {split} split can do without the concept; needs longer captions",
                field="concept", value=", ".join(concept.name for concept in concepts),
            )  # fmt: skip
        if (count := len(retain[split])) < 2:
            raise DataError(
                f"the {split} split needs at least 2 captions without the concept, got {count}",
                field="data", value=data.folder,
            )  # fmt: skip
    return TokenizedSets(forget, retain)


def tokenize_pairs(
    clip: Clip,
    data: Dataset,
    pairs: Sequence[CaptionPair],
    concepts: Sequence[Concept],
    images: bool,
) -> TokenizedPairs:
    """Tokenizes the captions with and without the `concepts`; with `images`, encodes the images too.

    Captions that exceed the context length are left out, with a warning, and so are those of
    unreadable images.
    """
    table = image_features(clip, data, [_image(pair) for pair in pairs]) if images else {}
    pairs = [pair for pair in pairs if _image(pair) not in data.unreadable]
    fitting = clip.token_limit.fitting([pair.caption for pair in pairs])
    kept = [pair for pair, fits in zip(pairs, fitting, strict=True) if fits]
    if len(kept) < len(pairs):
        log.warning(
            "%d captions of more than %d tokens are left out", len(pairs) - len(kept), clip.length
        )
    ids = clip.tokens([pair.caption for pair in kept])
    features = torch.stack([table[_image(pair)] for pair in kept]) if images and kept else None
    paths = [data.path_of(_image(pair)) for pair in kept]
    return TokenizedPairs(
        kept, ids, features, paths, *concept_removed_ids(clip, kept, ids, concepts)
    )


def _image(pair: CaptionPair) -> str:
    assert pair.image is not None  # only prompts have none
    return pair.image


def concept_removed_ids(
    clip: Clip, pairs: Sequence[CaptionPair], ids: Tensor, concepts: Sequence[Concept]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids of the captions without the concepts, with the source and mask of `TokenizedPairs`.

    The mask is 0 for captions that mention no concept, still mention one after the removal, or are
    tokenized differently without it; their ids stay as they are.
    """
    count, length = ids.shape
    removed_ids, mask = ids.clone(), torch.zeros(count, length)
    source = torch.arange(length).repeat(count, 1)
    for row, pair in enumerate(pairs):
        if not pair.mentions:
            continue
        text, removed = remove_concepts(pair.caption, concepts)
        if any(concept.in_text(text) for concept in concepts):
            continue
        tokens = clip.tokenizer(pair.caption, return_offsets_mapping=True)
        kept, positions = position_map(tokens["offset_mapping"], removed)
        short = clip.tokenizer(text)["input_ids"]
        if [tokens["input_ids"][position] for position in kept] != short:
            continue
        removed_ids[row] = clip.tokenizer.pad_token_id
        removed_ids[row, : len(short)] = torch.tensor(short)
        source[row, : len(positions)] = torch.tensor(positions)
        mask[row] = 1
    return removed_ids, source, mask


def position_map(offsets: Sequence[Span], removed: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Positions of the tokens outside the `removed` spans, and the new position of every token.

    `offsets` are the tokens' characters, empty for special tokens. A removed token is mapped to the
    last kept token before it: the causal text tower has read nothing else by then.
    """
    kept = [
        position
        for position, (start, end) in enumerate(offsets)
        if start == end or not any(start < span[1] and span[0] < end for span in removed)
    ]
    new_positions, count = [], 0
    for position in range(len(offsets)):
        count += position in kept
        new_positions.append(max(count - 1, 0))
    return kept, new_positions
