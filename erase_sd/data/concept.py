"""Concepts, and where text mentions them: by name, synonym or plural, except in a kept sense."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from types import ModuleType
from unittest.mock import patch

import typeguard

from ..errors import SettingError

Span = tuple[int, int]
"""Start and end character offsets."""


@functools.cache
def _inflect() -> ModuleType:
    """inflect without the run-time checks of its arguments' types, which take two seconds to set up."""
    with patch.object(typeguard, "typechecked", lambda function: function):
        import inflect
    return inflect


@functools.cache
def plurals_of(noun: str) -> tuple[str, ...]:
    """English plurals of a noun phrase, the usual one first, then the classical one if it differs:
    `orange` -> `oranges`; `person` -> `people`, `persons`."""
    usual, classical = _inflect().engine(), _inflect().engine()
    classical.classical(all=True)
    return tuple(dict.fromkeys(engine.plural_noun(noun) or noun for engine in (usual, classical)))


@functools.cache
def with_article(noun: str) -> str:
    """A noun phrase with its indefinite article: `an apple`, `a unicorn`, `an hourglass`."""
    return str(_inflect().engine().a(noun))


def slug(name: str) -> str:
    """A concept's name as a file name: `hot-dog` for "Hot dog"."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Concept:
    """A concept to erase.

    A mention is the name, a synonym, or a plural of either, as whole words in any case. "Apple's"
    mentions an apple; "apple-shaped" and "pineapple" do not. Words are matched, not meanings: "an
    orange shirt" mentions an orange, unless "orange shirt" is a kept sense.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    """Other words for the concept, erased with it."""
    keep_senses: tuple[str, ...] = ()
    """Phrases in which the word means something else and is not a mention ("apple laptop")."""

    def __post_init__(self) -> None:
        words = {"concept": (self.name,), "synonym": self.synonyms, "keep_sense": self.keep_senses}
        for field, phrases in words.items():
            for phrase in phrases:
                if not re.search(r"\w", phrase):
                    raise SettingError("needs a word", field=field, value=repr(phrase))

    def spans(self, text: str) -> list[Span]:
        """Spans of all mentions in `text`, in order."""
        kept_senses = _pattern(self.keep_senses).finditer(text) if self.keep_senses else ()
        kept = [match.span() for match in kept_senses]
        mentions = (match.span() for match in _pattern((self.name, *self.synonyms)).finditer(text))
        return [m for m in mentions if not any(k[0] <= m[0] and m[1] <= k[1] for k in kept)]

    def in_text(self, text: str) -> bool:
        """Whether `text` mentions the concept."""
        return bool(self.spans(text))


_HYPHEN = r"[-\u2010\u2011]"


@functools.cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the phrases or their plurals as whole words, longest first.

    The words of a phrase may be separated by spaces or a hyphen, or written as one ("hot dog",
    "hot-dog", "hotdog"). A word that is hyphenated to another is not a whole word.
    """
    forms = {form for phrase in phrases for form in (phrase, *plurals_of(phrase))}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    between = rf"\s*{_HYPHEN}?\s*"
    options = "|".join(
        between.join(map(re.escape, re.findall(rf"(?:(?!{_HYPHEN})\S)+", form)))
        for form in (unicodedata.normalize("NFC", form) for form in ordered)
    )
    return re.compile(rf"(?<!\w)(?<!\w{_HYPHEN})(?:{options})(?!\w)(?!{_HYPHEN}\w)", re.IGNORECASE)
