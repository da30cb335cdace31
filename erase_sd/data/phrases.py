"""Phrases that a set of captions has in common and another lacks: candidates for a concept's names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from .concept import Span
from .syntax import is_english, phrase_bounds
from .tree import Tree

Phrase = tuple[str, ...]
"""Words in lower case."""
Rows = Mapping[Phrase, Sequence[int]]
"""The captions, by number, in which each phrase occurs."""

MAX_WORDS = 12
"""Maximum number of words of a phrase."""
MIN_CAPTIONS = 5
"""Fewest captions that a phrase must occur in; of thousands of phrases, some in fewer pass by chance."""
MIN_LIFT = 3.0
"""Minimum ratio of a phrase's frequency in the captions to that in the others: a look-alike or a
neighbour is about as frequent in both."""
SAME = 0.9
"""A phrase that a longer one continues in this share of its captions is a part of that one: "granny" of
"granny smith"."""
MIN_CONTINUED = 5
"""Fewest captions that show a phrase to be a part of a longer one."""

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")


def frequent_phrases(captions: Sequence[str], trees: Sequence[Tree], others: Sequence[str]) -> Rows:
    """Phrases of the captions, whose syntax trees are `trees`, that are rarer in the `others`.

    A phrase that is only ever part of a longer one is left out.
    """
    candidates = {
        phrase
        for caption, tree in zip(captions, trees, strict=True)
        if is_english(tree)
        for phrase in _phrases(caption, tree)
    }
    rows = {
        p: own for p, own in occurrences(candidates, captions).items() if len(own) >= MIN_CAPTIONS
    }
    elsewhere = occurrences(rows, others)
    scale = MIN_LIFT * len(captions) / max(len(others), 1)
    rows = {p: own for p, own in rows.items() if len(own) >= scale * len(elsewhere.get(p, ()))}
    parts = _parts(rows)
    return {phrase: own for phrase, own in rows.items() if phrase not in parts}


def occurrences(phrases: set[Phrase] | Rows, captions: Sequence[str]) -> Rows:
    """The captions in which each of the phrases occurs."""
    begun = {phrase[:n] for phrase in phrases for n in range(1, len(phrase) + 1)}
    rows: dict[Phrase, list[int]] = defaultdict(list)
    for row, caption in enumerate(captions):
        words = tuple(_WORD.findall(caption.lower()))
        for phrase in {p for i in range(len(words)) for p in _begun_at(words, i, begun)}:
            if phrase in phrases:
                rows[phrase].append(row)
    return rows


def span_of(phrase: Phrase, caption: str) -> Span:
    """Where the phrase first occurs in a caption, characters."""
    words = list(_WORD.finditer(caption.lower()))
    texts = tuple(word[0] for word in words)
    first = next(i for i in range(len(words)) if texts[i : i + len(phrase)] == phrase)
    return words[first].start(), words[first + len(phrase) - 1].end()


def _phrases(caption: str, tree: Tree) -> Iterator[Phrase]:
    starts, ends = phrase_bounds(tree)
    words = list(_WORD.finditer(caption.lower()))
    for i, word in enumerate(words):
        if word.start() not in starts:
            continue
        for j, last in enumerate(words[i : i + MAX_WORDS], i + 1):
            if not last[0][0].isalnum():
                break  # at punctuation
            if last.end() in ends:
                yield tuple(own[0] for own in words[i:j])


def _begun_at(words: Phrase, start: int, begun: set[Phrase]) -> Iterator[Phrase]:
    """The phrases from `start` on that begin one of those in question."""
    for end in range(start + 1, min(len(words), start + MAX_WORDS) + 1):
        if (phrase := words[start:end]) not in begun:
            return
        yield phrase


def _parts(rows: Rows) -> set[Phrase]:
    """Phrases that occur, nearly always, inside one and the same longer phrase."""
    parts = set()
    for whole, own in rows.items():
        for i in range(len(whole)):
            for j in range(i + 1, len(whole) + 1):
                part, count = whole[i:j], len(rows.get(whole[i:j], ()))
                if part != whole and count >= MIN_CONTINUED and len(own) >= SAME * count:
                    parts.add(part)
    return parts
