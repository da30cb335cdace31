"""Syntax trees as plain objects, without the parser that made them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Parsed:
    """What a dependency parser says about a text, token by token; plain JSON."""

    words: Sequence[str]
    spaces: Sequence[bool]
    """Whether a space follows."""
    heads: Sequence[int]
    """Position of the token that it depends on; of the root, its own."""
    tags: Sequence[str]
    """Penn Treebank tags."""
    pos: Sequence[str]
    """Universal parts of speech."""
    labels: Sequence[str]
    """Dependency labels."""
    noun_phrases: Sequence[tuple[int, int, int]]
    """First token, end, and head of each base noun phrase, which holds no other."""

    @classmethod
    def of_json(cls, row: Sequence[Any]) -> Self:
        """From its fields as JSON. Words and labels recur in many texts, so equal strings are shared."""
        return cls(*(list(map(_shared, field)) for field in row))


def _shared(value: Any) -> Any:
    return sys.intern(value) if isinstance(value, str) else value


class Token:
    """A word or punctuation mark in a tree."""

    __slots__ = (
        "dep",
        "head",
        "i",
        "lefts",
        "lower",
        "pos",
        "rights",
        "space",
        "start",
        "tag",
        "text",
    )

    def __init__(self, parsed: Parsed, position: int, start: int) -> None:
        self.i = position
        self.start = start
        """Offset in the text, characters."""
        self.text = parsed.words[position]
        self.lower = self.text.lower()
        self.space = " " if parsed.spaces[position] else ""
        self.tag, self.pos = parsed.tags[position], parsed.pos[position]
        self.dep = parsed.labels[position]
        """Label of its dependency on `head`."""
        self.head: Token = self
        self.lefts: list[Token] = []
        """Its dependents before it, in their order."""
        self.rights: list[Token] = []

    @property
    def end(self) -> int:
        """Offset in the text after its last character."""
        return self.start + len(self.text)

    @property
    def children(self) -> list[Token]:
        """Its dependents."""
        return [*self.lefts, *self.rights]

    @property
    def subtree(self) -> list[Token]:
        """The token and everything below it, in the order of the text."""
        tokens = [self]
        for token in tokens:  # grows; a recursion can be deeper than Python allows
            tokens += token.children
        return sorted(tokens, key=lambda token: token.i)


class Tree:
    """The tokens of a text and what depends on what."""

    def __init__(self, parsed: Parsed) -> None:
        self.tokens: list[Token] = []
        start = 0
        for position in range(len(parsed.words)):
            self.tokens.append(token := Token(parsed, position, start))
            start = token.end + len(token.space)
        for token, position in zip(self.tokens, parsed.heads, strict=True):
            head = self.tokens[position]
            token.head = head
            if position != token.i:
                (head.lefts if token.i < position else head.rights).append(token)
        self._noun_phrases = parsed.noun_phrases

    @functools.cached_property
    def text(self) -> str:
        """The text that was parsed."""
        return "".join(token.text + token.space for token in self.tokens)

    @property
    def noun_phrases(self) -> list[tuple[list[Token], Token]]:
        """The tokens and the head of each base noun phrase."""
        return [(self.tokens[a:b], self.tokens[head]) for a, b, head in self._noun_phrases]
