"""Prompts as token ids with a stretch under attack: its ids, or free embeddings, in any context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, SettingError
from ..models.pipeline import embed_ids, tokenizer_of
from .target import AttackedCaption, Embeds, Target

Part = tuple[str, Sequence[int], str]
"""Text before the attacked stretch, the stretch's token ids, text after it."""


@dataclass(frozen=True)
class TokenRows:
    """n prompts as token ids, each with a stretch of tokens under attack."""

    ids: Mapping[str, Tensor]
    """Padded ids, (n, tokens), by encoder."""
    start: Tensor
    """Position of the stretch's first token, (n,)."""
    length: Tensor
    """Its number of tokens, (n,)."""


def token_rows(target: Target, parts: Sequence[Part]) -> TokenRows:
    """The rows of prompts; a prompt that is too long is truncated.

    Raises SettingError if the attacked stretch itself does not fit.
    """
    first = target.tokenizer
    limit = int(first.model_max_length)
    rows, start = [], []
    for before, stretch, after in parts:
        head = [first.bos_token_id, *_ids(first, before)]
        if len(head) + len(stretch) >= limit:
            rule = f"{len(stretch)} tokens exceed the context length; needs fewer"
            raise SettingError(rule, field="budgets")
        rows.append([*head, *stretch, *_ids(first, after)][: limit - 1])
        start.append(len(head))
    ids = {}
    for name in target.original:
        tokenizer = tokenizer_of(target.pipe, name)
        padded = [
            [*row, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (limit - 1 - len(row))
            for row in rows
        ]
        ids[name] = torch.tensor(padded)
    return TokenRows(ids, torch.tensor(start), torch.tensor([len(part[1]) for part in parts]))


def text_rows(target: Target, texts: Iterable[str]) -> TokenRows:
    """The rows of texts without a stretch under attack."""
    return token_rows(target, [(text, (), "") for text in texts])


def filled(rows: TokenRows, stretches: Tensor) -> TokenRows:
    """Each of m stretches (m, length) in all n rows, whose own have that length: m * n rows."""
    m, n = len(stretches), len(rows.start)
    start, own = rows.start.repeat(m), stretches.repeat_interleave(n, 0)
    columns = start[:, None] + torch.arange(own.shape[1])
    ids = {name: t.repeat(m, 1).scatter(1, columns, own) for name, t in rows.ids.items()}
    return TokenRows(ids, start, rows.length.repeat(m))


def in_place_of_name(captions: Sequence[AttackedCaption], ids: Sequence[int]) -> list[Part]:
    """Captions with other tokens in place of the mention."""
    return [(caption.around[0], ids, caption.around[1]) for caption in captions]


def with_name(target: Target, captions: Sequence[AttackedCaption]) -> TokenRows:
    """The captions as they are; the stretch is the mention."""
    parts = [(c.around[0], _ids(target.tokenizer, c.name), c.around[1]) for c in captions]
    return token_rows(target, parts)


def encode_rows(
    target: Target,
    encoders: Mapping[str, Any],
    rows: TokenRows,
    vectors: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What the U-Net reads of the rows, with `vectors` (length, width) or (n, length, width), by
    encoder, in place of the input embeddings of the stretch."""
    with contextlib.ExitStack() as replaced:
        for name, own in (vectors or {}).items():
            replaced.enter_context(_embeddings(encoders[name], rows.start, own))
        return embed_ids(target.pipe, encoders, rows.ids)


@contextlib.contextmanager
def _embeddings(encoder: Any, start: Tensor, vectors: Tensor) -> Iterator[None]:
    """Inside, the encoder's token embeddings from `start` on are `vectors`."""
    n, length = len(start), vectors.shape[-2]
    columns = (start[:, None] + torch.arange(length)).to(vectors.device)
    rows = torch.arange(n, device=vectors.device)[:, None].expand_as(columns)

    def replace(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        values = vectors.expand(n, length, -1).to(output.dtype)
        return output.index_put((rows, columns), values)

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def embedding_table(encoder: Any) -> Tensor:
    """Input embeddings of the vocabulary, (vocabulary, width)."""
    table: Tensor = encoder.get_input_embeddings().weight.detach()
    return table


def counterparts(rows: TokenRows, named: TokenRows) -> Tensor:
    """For each position of `rows`, the corresponding position in the captions with the name, (n, tokens):
    the same token before and after the stretch, and the nearest token of the name inside it."""
    tokens = next(iter(rows.ids.values())).shape[1]
    position = torch.arange(tokens)[None]
    start, length, name = rows.start[:, None], rows.length[:, None], named.length[:, None]
    inside = start + ((position - start) * name).div(length, rounding_mode="floor")
    after = (position - length + name).clamp(max=tokens - 1)
    return torch.where(
        position < start, position, torch.where(position < start + length, inside, after)
    )


def state_loss(attacked: Embeds, original: Embeds, source: Tensor) -> Tensor:
    """Squared distance of what the U-Net reads from the original's at the counterparts, (n,)."""
    states = original["prompt_embeds"]
    index = source.to(states.device)[..., None].expand(-1, -1, states.shape[-1])
    loss = (attacked["prompt_embeds"] - states.gather(1, index)).square().mean((1, 2))
    if "pooled_prompt_embeds" in attacked:
        pooled = attacked["pooled_prompt_embeds"] - original["pooled_prompt_embeds"]
        loss = loss + pooled.square().mean(1)
    return loss


def typeable_words(target: Target) -> dict[int, str]:
    """Token ids that stand for a word of letters which a user can type, without the concept's own.

    Raises ModelError if there is none.
    """
    tokenizer = target.tokenizer
    words: dict[int, str] = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = tokenizer.decode([number]).strip()
        if not token.endswith("</w>") or len(word) < 2 or not word.isalpha():
            continue
        if not target.concept.in_text(word) and _ids(tokenizer, word) == [number]:
            words[number] = word
    if not words:
        raise ModelError(f"its tokenizer has no word without {target.concept.name}", field="model")
    return words


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
