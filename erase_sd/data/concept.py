"""Concepts, and where text mentions them: by name, synonym or plural, except in a kept sense."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SettingError
from ..files import is_encodable, key_of
from .nouns import forms_of, inflect_module

Span = tuple[int, int]
"""Start and end character offsets."""
MAX_PHRASE = 300
"""Maximum length of a name, synonym or kept sense; no text encoder reads as many characters."""
MAX_NAME = 120
"""Maximum number of characters of a file name."""
MAX_NAME_BYTES = 200
"""Maximum number of its bytes; file systems allow 255, and an ending may follow."""


@functools.cache
def with_article(noun: str) -> str:
    """A noun phrase with its indefinite article: `an apple`, `a unicorn`, `an hourglass`."""
    return str(inflect_module().engine().a(noun))


def slug(name: str) -> str:
    """A concept's name as a file name: `hot-dog` for "Hot dog"; accents, vowel signs and tone marks stay."""
    text = unicodedata.normalize("NFC", name.lower())
    marks = ("Mn", "Mc")
    kept = (c if c.isalnum() or unicodedata.category(c) in marks else " " for c in text)
    return "-".join("".join(kept).split())


def joined_slug(names: Sequence[str]) -> str:
    """Several concepts as one file name: `apple+chair`, or their number and a hash if it is too long."""
    joined = "+".join(map(slug, names))
    if len(joined) <= MAX_NAME and len(joined.encode()) <= MAX_NAME_BYTES:
        return joined
    return f"{len(names)}-concepts-{key_of(list(names))}"


@dataclass(frozen=True)
class Concept:
    """A concept to erase.

    A mention is the name or a synonym, in singular or plural, as whole words in any case. "Apple's"
    mentions an apple; "apple-shaped" and "pineapple" do not. Accents match in any Unicode form, and
    apostrophes and hyphens in any shape; scripts that write no spaces match anywhere. Words are matched,
    not meanings: "an orange shirt" mentions an orange, unless "orange shirt" is a kept sense.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    """Other words for the concept, erased with it."""
    keep_senses: tuple[str, ...] = ()
    """Phrases in which the word means something else and is not a mention ("apple laptop")."""

    def __post_init__(self) -> None:
        words = {"concept": (self.name,), "synonym": self.synonyms, "keep_sense": self.keep_senses}
        for field, phrases in words.items():
            if isinstance(phrases, str):  # its letters would be the words
                raise SettingError(
                    "needs a tuple of texts, got one text", field=field, value=phrases
                )
            for phrase in phrases:
                if not re.search(r"\w", phrase):
                    raise SettingError("needs a word", field=field, value=repr(phrase))
                if not is_encodable(phrase):
                    raise SettingError("needs text in UTF-8", field=field, value=repr(phrase))
                if len(phrase) > MAX_PHRASE:
                    rule = f"needs at most {MAX_PHRASE} characters, got {len(phrase)}"
                    raise SettingError(rule, field=field)

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
_APOSTROPHES = "'\u2019\u02bc"
_MARK = r"\u0300-\u036f"
"""Accents of decomposed letters, which belong to the word."""
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters: written without spaces between words."""
_HANGUL = r"\uac00-\ud7a3"
"""Korean syllables: particles follow a noun without a space."""


@functools.cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the phrases, in singular or plural, as whole words, longest first.

    The words of a phrase may be separated by spaces or a hyphen, or written as one ("hot dog",
    "hot-dog", "hotdog"). A word that is hyphenated to another is not a whole word.
    """
    forms = {unicodedata.normalize("NFC", f) for phrase in phrases for f in forms_of(phrase)}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(_whole_words, ordered)), re.IGNORECASE)


def _whole_words(form: str) -> str:
    """Pattern of one form; a side in a script without spaces needs no word boundary."""
    words = re.findall(rf"(?:(?!{_HYPHEN})\S)+", form)
    between = rf"\s*{_HYPHEN}?\s*".join("".join(map(_any_form, word)) for word in words)
    bound = rf"[\w{_MARK}]"
    before = "" if re.match(f"[{_UNSPACED}]", form) else rf"(?<!{bound})(?<!\w{_HYPHEN})"
    after = rf"(?!{bound})(?!{_HYPHEN}\w)"
    if re.search(f"[{_UNSPACED}{_HANGUL}]$", form):
        after = ""
    return f"{before}{between}{after}"


def _any_form(char: str) -> str:
    """Pattern of a character, composed or decomposed, an apostrophe in any shape."""
    if char in _APOSTROPHES:
        return f"[{_APOSTROPHES}]"
    forms = dict.fromkeys((char, unicodedata.normalize("NFD", char)))
    return "(?:" + "|".join(map(re.escape, forms)) + ")" if len(forms) > 1 else re.escape(char)
