"""Captions as tokens: how many there are, how many fit, and which of them mention a concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.concept import Concept, Span
from ..errors import DataError, ModelError, reason
from .presets import Models
from .source import TOKENIZER_FILES, check_config, fetch

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

_CHUNK = 1000
"""Texts tokenized at a time: the tokenizer's own records of a text take several times those of its ids."""


@dataclass(frozen=True)
class TokenLimit:
    """A tokenizer and its model's context length: the most tokens of a text, start and end included."""

    tokenizer: PreTrainedTokenizerBase
    limit: int

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, start and end included."""
        return [len(ids) for ids in self.all_ids(texts)]

    def fits(self, text: str) -> bool:
        """Whether the model reads all of `text`."""
        return self.fitting([text])[0]

    def fitting(self, texts: Sequence[str]) -> list[bool]:
        """Whether the model reads all of each text."""
        return [count <= self.limit for count in self.counts(texts)]

    def ids(self, texts: Sequence[str], where: str) -> list[list[int]]:
        """Token ids of each text, unpadded. Raises DataError, beginning with `where`, for the first
        text that does not fit."""
        ids = self.all_ids(texts)
        for text, row in zip(texts, ids, strict=True):
            if len(row) > self.limit:
                raise DataError(f"{where}: {len(row)} tokens, at most {self.limit} fit: {text!r}")
        return ids

    def check(self, texts: Sequence[str], where: str) -> None:
        """Raises DataError, beginning with `where`, for the first text that does not fit."""
        self.ids(texts, where)

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, unpadded, also of texts that do not fit."""
        return [ids for tokens in self._encoded(texts) for ids in tokens["input_ids"]]

    def offsets(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[Span]]]:
        """`all_ids`, and each token's characters, empty for special tokens."""
        ids: list[list[int]] = []
        offsets: list[list[Span]] = []
        for tokens in self._encoded(texts, return_offsets_mapping=True):
            ids += tokens["input_ids"]
            offsets += tokens["offset_mapping"]
        return ids, offsets

    def _encoded(self, texts: Sequence[str], **options: bool) -> Iterator[BatchEncoding]:
        for start in range(0, len(texts), _CHUNK):
            yield self.tokenizer(list(texts[start : start + _CHUNK]), verbose=False, **options)


def token_limit_of(models: Models) -> TokenLimit:
    """The token limit of the first CLIP of `models`; no weights are fetched or read.

    Raises ModelError if there is no CLIP with a tokenizer.
    """
    from transformers import CLIPConfig, CLIPTokenizer

    folder = fetch("clip", models.clips[0], TOKENIZER_FILES)
    check_config(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError("no tokenizer (tokenizer.json or vocab.json)", field="clip", value=folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file raises different errors in different releases
        raise ModelError(
            f"tokenizer cannot be loaded ({reason(error)})", field="clip", value=folder
        ) from None
    return TokenLimit(tokenizer, int(config.text_config.max_position_embeddings))


@dataclass(frozen=True)
class Words:
    """A caption's tokens as text, `<|startoftext|>` and `<|endoftext|>` included."""

    tokens: tuple[str, ...]
    last: int
    """Position of the last word's last token."""
    end: int
    """Position of `<|endoftext|>`."""
    mentions: frozenset[int]
    """Positions of the tokens that mention a concept."""


def words_of(tokenizer: PreTrainedTokenizerBase, text: str, concepts: tuple[Concept, ...]) -> Words:
    """The tokens of `text`, each as the characters that it stands for."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    names = tokenizer.convert_ids_to_tokens(ids)
    tokens = tuple(text[i:j] or name for (i, j), name in zip(offsets, names, strict=True))
    end = len(tokens) - 1
    words = [k for k in range(1, end) if any(map(str.isalnum, tokens[k]))]
    spans = [span for concept in concepts for span in concept.spans(text)]
    mentions = (
        k
        for k, (start, stop) in enumerate(offsets)
        if any(start < span[1] and span[0] < stop for span in spans)
    )
    return Words(tokens, words[-1] if words else end - 1, end, frozenset(mentions))
