"""Caption pairs as tokens, each with its concept-removed counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.classes import TEMPLATES, prompt_of
from ..data.concept import Concept, Span
from ..data.dataset import Dataset
from ..data.pair import SPLITS, CaptionPair, ConceptSet, Split
from ..data.removal import remove_concepts_from
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
    prompts: Tensor | None = None
    """For labelled data: token ids of the captions of all classes, (templates, classes, tokens)."""


def tokenize_sets(
    clip: Clip,
    data: Dataset,
    sets: ConceptSets,
    concepts: Sequence[Concept],
    needs: frozenset[Need],
) -> TokenizedSets:
    """Tokenizes all sets and splits, with the features that a method needs.

    Raises DataError if a split of the forget set has no caption without its concept to compare with,
    or one of the retain set has fewer than two different captions.
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
                f"no caption of the {split} split is left once the concept is removed; needs longer captions",
                field="concept", value=", ".join(concept.name for concept in concepts),
            )  # fmt: skip
        # Captions that are all the same have no variance to compare a change with.
        if (count := len({pair.caption for pair in retain[split].pairs})) < 2:
            raise DataError(
                f"the {split} split needs at least 2 different captions without the concept, got {count}",
                field="data", value=data.folder,
            )  # fmt: skip
    return TokenizedSets(forget, retain, _class_prompts(clip, data.classes))


def _class_prompts(clip: Clip, classes: Sequence[str]) -> Tensor | None:
    """Token ids of the captions of all classes, (templates, classes, tokens); None without classes."""
    if not classes:
        return None
    texts = [prompt_of(template, name) for template in TEMPLATES for name in classes]
    return clip.tokens(texts).view(len(TEMPLATES), len(classes), -1)


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
    captions = list(dict.fromkeys(pair.caption for pair in pairs))  # those of a class repeat
    tokens = dict(zip(captions, clip.token_limit.all_ids(captions), strict=True))
    kept = [pair for pair in pairs if len(tokens[pair.caption]) <= clip.length]
    if len(kept) < len(pairs):
        log.warning(
            "%d captions of more than %d tokens are left out", len(pairs) - len(kept), clip.length
        )
    distinct = {pair.caption: pair for pair in kept}
    number = {caption: row for row, caption in enumerate(distinct)}
    rows = torch.tensor([number[pair.caption] for pair in kept], dtype=torch.long)
    ids = clip.padded(tokens[caption] for caption in distinct)
    once = list(distinct.values())
    removed_ids, source, mask = concept_removed_ids(clip, once, ids, concepts)
    return TokenizedPairs(
        pairs=kept,
        ids=ids[rows],
        image=torch.stack([table[_image(pair)] for pair in kept]) if images and kept else None,
        paths=[data.path_of(_image(pair)) for pair in kept],
        concept_removed_ids=removed_ids[rows],
        source=source[rows],
        mask=mask[rows],
        mention_end=mention_ends(clip, once, concepts)[rows],
        label=_labels(data, kept),
    )


def _labels(data: Dataset, pairs: Sequence[CaptionPair]) -> Tensor | None:
    """Number of each pair's class, (n,); None without classes."""
    if not data.classes:
        return None
    number = {name: n for n, name in enumerate(data.classes)}
    return torch.tensor([number[pair.label] for pair in pairs if pair.label is not None])


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
    rows = [row for row, pair in enumerate(pairs) if pair.mentions]
    captions = [pairs[row].caption for row in rows]
    without = remove_concepts_from(captions, concepts)
    full, offsets = clip.token_limit.offsets(captions)
    shorts = clip.token_limit.all_ids([text for text, _ in without])
    for number, row in enumerate(rows):
        (text, removed), short = without[number], shorts[number]
        if any(concept.in_text(text) for concept in concepts):
            continue
        positions = position_map(full[number], offsets[number], removed, short)
        if positions is None or len(short) > length:
            continue
        removed_ids[row] = clip.tokenizer.pad_token_id
        removed_ids[row, : len(short)] = torch.tensor(short)
        source[row, : len(positions)] = torch.tensor(positions)
        mask[row] = 1
    return removed_ids, source, mask


def mention_ends(clip: Clip, pairs: Sequence[CaptionPair], concepts: Sequence[Concept]) -> Tensor:
    """Position of the last token of each caption's last mention, 0 if there is none, (n,)."""
    ends = torch.zeros(len(pairs), dtype=torch.long)
    rows = [row for row, pair in enumerate(pairs) if pair.mentions]
    captions = [pairs[row].caption for row in rows]
    offsets = clip.token_limit.offsets(captions)[1]
    for row, caption, own in zip(rows, captions, offsets, strict=True):
        if spans := [span for concept in concepts for span in concept.spans(caption)]:
            last = max(end for _, end in spans)
            ends[row] = max(i for i, (start, end) in enumerate(own) if start < last and end)
    return ends


def position_map(
    ids: Sequence[int], offsets: Sequence[Span], removed: Sequence[Span], short: Sequence[int]
) -> list[int] | None:
    """The position in the concept-removed caption `short` that each token of a caption corresponds to.

    `offsets` are the tokens' characters, empty for special tokens; `removed` are the spans that were
    removed or replaced. A token in one of them is mapped to the last kept token before it: the causal
    text tower has read nothing else by then. A token of `short` that was inserted, such as "and", has
    no counterpart. None if the kept tokens are not all in `short`, in their order.
    """
    positions: list[int] = []
    last, following = 0, 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        if start == end or not any(start < b and a < end for a, b in removed):
            while following < len(short) and short[following] != token:
                following += 1
            if following == len(short):
                return None
            last, following = following, following + 1
        positions.append(last)
    return positions if following == len(short) else None
