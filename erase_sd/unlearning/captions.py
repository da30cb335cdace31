"""Caption rows: token ids, the original's image features, and each caption without the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ..data.concept import Concept, without
from ..data.flickr30k import Captioned, Dataset
from ..files import cache_folder, key_of, whole_file
from ..models.clip import Clip
from ..runtime import say


@dataclass(frozen=True)
class Rows:
    """Captions of one side and part: token ids, the original's image features, where each came from."""

    texts: list[str]
    ids: Tensor  # (n, tokens)
    image: Tensor  # (n, projection), unit norm, the original's
    paths: list[Path]
    reduced_ids: Tensor  # (n, tokens), of the caption without the concept
    source: Tensor  # (n, tokens), the position in the reduced caption that each position becomes
    mask: Tensor  # (n, tokens), 0 where there is none

    def __len__(self) -> int:
        return len(self.texts)


def rows_of(
    clip: Clip,
    data: Dataset,
    items: Sequence[Captioned],
    concepts: tuple[Concept, ...],
    images: bool,
) -> Rows:
    """The captions of `items`, and each less the `concepts`.

    Captions with more tokens than the model has room for are left out, and their number is said.
    Without `images` their features are left empty, (n, 0).
    """
    pairs = [(caption, item) for item in items for caption in item.captions]
    tokens = clip.tokenizer([caption for caption, _ in pairs], verbose=False)["input_ids"]
    kept = [pair for pair, ids in zip(pairs, tokens, strict=True) if len(ids) <= clip.length]
    if len(kept) < len(pairs):
        say(f"{len(pairs) - len(kept)} captions of more than {clip.length} tokens are left out")
    texts, shown = [caption for caption, _ in kept], [item for _, item in kept]
    ids = clip.tokens(texts)
    image = torch.empty(len(texts), 0)
    if images:
        table = image_features(clip, data, items)
        image = torch.stack([table[item.image] for item in shown])
    reduced, source, mask = reduce(clip, texts, ids, concepts)
    paths = [data.path_of(item) for item in shown]
    return Rows(texts, ids, image, paths, reduced, source, mask)


def image_features(clip: Clip, data: Dataset, items: Sequence[Captioned]) -> dict[str, Tensor]:
    """The original's unit-norm image features by file name; each computed once, then read back.

    The cache is keyed by the weights and the folder's captions; a damaged one is made anew.
    """
    path = cache_folder() / "features" / f"{key_of([clip.digest, data.digest])}.safetensors"
    try:
        table = load(path.read_bytes())
        if not all(torch.isfinite(row).all() for row in table.values()):
            table = {}
    except (OSError, SafetensorError):
        table = {}
    missing = [item for item in items if item.image not in table]
    with torch.no_grad():
        for start in range(0, len(missing), 128):
            part = missing[start : start + 128]
            rows = clip.encode_image(clip.pixels([data.path_of(item) for item in part])).cpu()
            table |= {item.image: row.clone() for item, row in zip(part, rows, strict=True)}
    if missing:
        with whole_file(path) as file:
            save_file(table, file)
    return table


def reduce(
    clip: Clip, texts: list[str], ids: Tensor, concepts: tuple[Concept, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """The captions without the concepts, and which of their positions stands for which.

    Kept words, `<|endoftext|>` and the padding go to their own counterparts. A position of the
    phrase that went becomes the word before it: there, the reader has learned nothing new. Captions
    without a mention, or that the tokenizer cuts differently without it, have a mask of 0.
    """
    count, length = ids.shape
    source = torch.arange(length).repeat(count, 1)
    mask = torch.zeros(count, length)
    reduced = ids.clone()
    for row, text in enumerate(texts):
        rest, gone = without(text, concepts)
        if not gone or any(concept.in_text(rest) for concept in concepts):
            continue
        encoded = clip.tokenizer(text, return_offsets_mapping=True)
        kept = [
            i
            for i, (start, end) in enumerate(encoded["offset_mapping"])
            if start == end or not any(start < g[1] and g[0] < end for g in gone)
        ]
        short = clip.tokenizer(rest)["input_ids"]
        if [encoded["input_ids"][i] for i in kept] != short:
            continue
        reduced[row] = clip.tokenizer.pad_token_id
        reduced[row, : len(short)] = torch.tensor(short)
        at = 0
        for position in range(len(encoded["input_ids"])):
            at += position in kept
            source[row, position] = max(at - 1, 0)
        mask[row] = 1
    return reduced, source, mask
