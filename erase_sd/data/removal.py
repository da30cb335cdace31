"""Captions without a concept: each mention is removed with its determiner, adjectives and link."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .concept import Concept, Span

_DETERMINERS = r"(?:an?|the|one|some|this|that|these|those|his|her|its|their|my|your|our|two|three)"
_LINK_WORDS = (
    r"(?:next to|in front of|on top of|to the (?:left|right) of|close to|along with|together with"
    r"|beside|besides|near|behind|with|by|holding|carrying|and|or)"
)
_LINK = rf"(?:,|(?<![\w-]){_LINK_WORDS})"
_ADJECTIVES = rf"(?:(?!{_LINK_WORDS}\b)[^\W\d_]+\s+){{0,2}}?"
_BEFORE = re.compile(
    rf"(?P<link>{_LINK}\s+)?(?:(?<![\w-]){_DETERMINERS}\s+{_ADJECTIVES})?$", re.IGNORECASE
)
_AFTER = re.compile(rf"\s*{_LINK}(?!\w)", re.IGNORECASE)
_POSSESSIVE = re.compile(r"(?:\s?['\u2019]s|(?<=s)['\u2019])(?!\w)", re.IGNORECASE)


def phrase_span(text: str, mention: Span) -> Span:
    """The span of a mention's phrase: determiner, up to two adjectives, and the link before it.

    In "a dog next to a red apple in a park" it is "next to a red apple". Without a link before the
    phrase, the one after it belongs to it: "an apple and a dog" becomes "a dog". After a possessive
    the noun stays: "the dog's tail" becomes "tail".
    """
    start, end = mention
    if possessive := _POSSESSIVE.match(text, end):
        end = possessive.end()
    before = _BEFORE.search(text[:start])
    assert before is not None  # matches the empty string
    start = before.start()
    if before["link"] is None and (after := _AFTER.match(text[end:])):
        end += after.end()
    return start, end


def remove_concepts(text: str, concepts: Iterable[Concept]) -> tuple[str, list[Span]]:
    """`text` without the phrases that mention a concept, and the spans of `text` that were removed."""
    removed: list[Span] = []
    for start, end in sorted(phrase_span(text, m) for c in concepts for m in c.spans(text)):
        if removed and start <= removed[-1][1]:
            removed[-1] = (removed[-1][0], max(end, removed[-1][1]))
        else:
            removed.append((start, end))
    bounds = [0, *(offset for span in removed for offset in span), len(text)]
    pieces = (text[i:j].strip() for i, j in zip(bounds[::2], bounds[1::2], strict=True))
    return re.sub(r"\s+", " ", " ".join(pieces)).strip(), removed
