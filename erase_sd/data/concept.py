"""What a concept is in text: its word, plurals and synonyms, less the senses that are kept."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import SettingError

Span = tuple[int, int]

# Words that introduce a noun; they go with it when it is taken out of a caption.
_DETERMINERS = r"(?:an?|the|one|some|this|that|these|those|his|her|its|their|my|your|our|two|three)"
_LINKS = (
    r"(?:next to|in front of|on top of|to the (?:left|right) of|close to|along with|together with"
    r"|beside|besides|near|behind|with|by|holding|carrying|and|or)"
)


@functools.cache
def plurals_of(noun: str) -> tuple[str, ...]:
    """English plurals of a noun phrase, by the inflect library, the usual one first and the one of
    older English where it differs: `orange` -> `oranges`; `person` -> `people`, `persons`."""
    import inflect

    usual, older = inflect.engine(), inflect.engine()
    older.classical(all=True)
    return tuple(dict.fromkeys(engine.plural_noun(noun) or noun for engine in (usual, older)))


@dataclass(frozen=True)
class Concept:
    """A concept to erase. A mention is its name, a synonym, or a plural of one, as whole words
    and in any case; not where it is part of a phrase in `keep_senses` ("apple laptop").

    "Apple's" is a mention; "apple-shaped" and "pineapple" are none. What a word means is not looked
    at: an orange shirt mentions an orange, unless that is a kept sense.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    keep_senses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for word in (self.name, *self.synonyms, *self.keep_senses):
            if not re.search(r"\w", word):
                raise SettingError(f"concept: needs a word, got {word!r}")

    def spans(self, text: str) -> list[Span]:
        """Where `text` mentions the concept: (start, end) character offsets, in order."""
        kept = _words(self.keep_senses).finditer(text) if self.keep_senses else ()
        held = [match.span() for match in kept]
        found = (match.span() for match in _words((self.name, *self.synonyms)).finditer(text))
        return [s for s in found if not any(k[0] <= s[0] and s[1] <= k[1] for k in held)]

    def in_text(self, text: str) -> bool:
        """Whether `text` mentions the concept."""
        return bool(self.spans(text))


_HYPHEN = r"[-\u2010\u2011]"


@functools.cache
def _words(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases or their plurals, as whole words, longest first.

    The words of a phrase may stand apart, be joined by a hyphen, or be written as one ("hot dog",
    "hot-dog", "hotdog"); a word that a hyphen joins to another is no whole word.
    """
    forms = {form for phrase in phrases for form in (phrase, *plurals_of(phrase))}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    between = rf"\s*{_HYPHEN}?\s*"
    options = "|".join(
        between.join(map(re.escape, re.findall(rf"(?:(?!{_HYPHEN})\S)+", form)))
        for form in (unicodedata.normalize("NFC", form) for form in ordered)
    )
    return re.compile(rf"(?<!\w)(?<!\w{_HYPHEN})(?:{options})(?!\w)(?!{_HYPHEN}\w)", re.IGNORECASE)


_LINK = rf"(?:,|(?<![\w-]){_LINKS})"
_ADJECTIVES = rf"(?:(?!{_LINKS}\b)[^\W\d_]+\s+){{0,2}}?"
_BEFORE = re.compile(
    rf"(?P<link>{_LINK}\s+)?(?:(?<![\w-]){_DETERMINERS}\s+{_ADJECTIVES})?$", re.IGNORECASE
)
_AFTER = re.compile(rf"\s*{_LINK}(?!\w)", re.IGNORECASE)
_POSSESSIVE = re.compile(r"(?:\s?['\u2019]s|(?<=s)['\u2019])(?!\w)", re.IGNORECASE)


def phrase_span(text: str, mention: Span) -> Span:
    """The mention with what belongs to it: determiner, up to two adjectives, and the link before.

    "a dog next to a red apple in a park" gives "next to a red apple"; where no link stands before
    it, the one that follows goes instead ("an apple and a dog" leaves "a dog"). Of a possessive
    what is possessed stays ("the dog's tail" leaves "tail").
    """
    start, end = mention
    if possessive := _POSSESSIVE.match(text, end):
        end = possessive.end()
    before = _BEFORE.search(text[:start])
    assert before is not None  # it matches the empty string
    linked = before["link"] is not None
    start = before.start()
    if not linked and (after := _AFTER.match(text[end:])):
        end += after.end()
    return start, end


def without(text: str, concepts: Iterable[Concept]) -> tuple[str, list[Span]]:
    """`text` with every mention's phrase taken out, and the spans of `text` that went."""
    spans = sorted(phrase_span(text, s) for concept in concepts for s in concept.spans(text))
    gone: list[Span] = []
    for start, end in spans:
        if gone and start <= gone[-1][1]:
            gone[-1] = (gone[-1][0], max(end, gone[-1][1]))
        else:
            gone.append((start, end))
    pieces, at = [], 0
    for start, end in gone:
        pieces.append(text[at:start])
        at = end
    pieces.append(text[at:])
    return re.sub(r"\s+", " ", " ".join(piece.strip() for piece in pieces)).strip(), gone
