"""Captions without a concept, as a person would write them: what cannot stand without it goes too.

"A man holding an apple in a park" becomes "A man in a park", and "an apple and a dog" becomes "a dog".
The rules read the caption's syntax tree (`syntax`). A caption whose language the parser does not know
loses the mention alone, which is logged once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise, zip_longest

from ..runtime import log
from .concept import Concept, Span, with_article
from .removal_cuts import PRONOUN_TAGS, Cuts
from .removal_phrases import cut_mentions
from .syntax import RELATIONAL_NOUNS, is_english, parse
from .tree import Token, Tree

Removed = tuple[str, list[Span]]
"""A caption without the concepts, and the spans of the caption that were removed or replaced."""

MAX_CHARACTERS = 2000
"""Maximum length of a text that is parsed; no text encoder reads as many characters."""
_CLOSING = frozenset(",.;:!?")
_BEGIN_MEMBER = ("DET", "PRON", "NUM")
_LEADING_TAGS = PRONOUN_TAGS - {"CD", "PRP$", "PDT"} | {"CC"}


def remove_concepts(text: str, concepts: Iterable[Concept]) -> Removed:
    """`text` without the concepts, and the spans of `text` that were removed or replaced.

    Raises ModelError if the English parser is not installed.
    """
    return remove_concepts_from([text], concepts)[0]


def remove_concepts_from(texts: Iterable[str], concepts: Iterable[Concept]) -> list[Removed]:
    """`remove_concepts` of many captions; only those with a mention are parsed.

    From a text of more than MAX_CHARACTERS, only the mentions themselves are removed.
    """
    concepts, removed = tuple(concepts), [(text, list[Span]()) for text in texts]
    spans = [sorted({s for c in concepts for s in c.spans(text)}) for text, _ in removed]
    long = {row for row, (text, _) in enumerate(removed) if len(text) > MAX_CHARACTERS}
    for row in long:
        removed[row] = _without_nouns(removed[row][0], spans[row])
    rows = [row for row, own in enumerate(spans) if own and row not in long]
    for row, tree in zip(rows, parse(removed[row][0] for row in rows), strict=True):
        removed[row] = remove_spans(removed[row][0], tree, spans[row])
    return removed


def remove_spans(text: str, tree: Tree, spans: Sequence[Span]) -> Removed:
    """`text`, whose syntax tree is `tree`, without the phrases at `spans`."""
    mentions = [[t for t in tree.tokens if t.start < end and start < t.end] for start, end in spans]
    whole = all(
        start <= tokens[0].start and tokens[-1].end <= end
        for (start, end), tokens in zip(spans, mentions, strict=True)
    )
    if not whole or not is_english(tree):
        if not is_english(tree):
            log_unknown_language()
        return _without_nouns(text, spans)
    cuts = Cuts(tree)
    cut_mentions(cuts, mentions)
    _replace_between(cuts)
    return _rendered(text, cuts)


@functools.cache
def log_unknown_language() -> None:
    """Logs, the first time only, that captions in other languages lose the noun alone."""
    log.warning("some captions are not in English; only the noun is removed from them")


def _without_nouns(text: str, spans: Sequence[Span]) -> Removed:
    """`text` without the mentions alone."""
    bounds = [0, *(offset for span in spans for offset in span), len(text)]
    pieces = (text[i:j] for i, j in zip(bounds[::2], bounds[1::2], strict=True))
    return re.sub(r"\s+", " ", "".join(pieces)).strip(), list(spans)


def _replace_between(cuts: Cuts) -> None:
    """Where one of two things is left, it is no longer between them: "beside a cup"."""
    for between in cuts.kept(t for t in cuts.tree.tokens if t.lower == "between"):
        below = between.subtree
        lost = any(t.dep in ("pobj", "conj") and not cuts.keeps(t) for t in below)
        left = cuts.kept(t for t in below if t.dep == "cc" or t.tag.startswith("NN"))
        if lost and left and left[0].tag in ("NN", "NNP") and all(t.dep != "cc" for t in left):
            cuts.replaced[between.i] = "beside"
            cuts.drop(*(t for t in cuts.tree.tokens[: between.i][-1:] if t.lower == "in"))


def _rendered(text: str, cuts: Cuts) -> Removed:
    """What the cuts leave, with its stray commas and pronouns removed and its articles agreeing."""
    kept = [token for token in cuts.tree.tokens if cuts.keeps(token) and not token.text.isspace()]
    for tidy in (_without_leading_words, _without_trailing_pronouns, _without_stray_commas):
        kept = tidy(kept, cuts)
    for token, following in pairwise(kept):
        indefinite = token.lower in ("a", "an") and token.i not in cuts.replaced
        if indefinite and following.i > token.i + 1:
            cuts.replaced[token.i] = _article(text[token.start : token.end], following)
    out, last = "", -1
    for token in kept:
        own = text[token.start : token.end]
        word = cuts.replaced.get(token.i, own)
        word = word[0].upper() + word[1:] if own[0].isupper() else word
        before = cuts.tree.tokens[token.i - 1].space if token.i else ""
        if last >= 0 and not word.startswith(" "):
            apart = token.i > last + 1 and token.text not in _CLOSING
            out += " " if apart else before
        out, last = out + word, token.i
    return out.strip(), _removed_spans(text, kept, cuts)


def _removed_spans(text: str, kept: Sequence[Token], cuts: Cuts) -> list[Span]:
    """Runs of tokens that are not kept as they are."""
    same = {t.i for t in kept if cuts.replaced.get(t.i, "") in ("", text[t.start : t.end])}
    spans: list[Span] = []
    previous = -2
    for token in cuts.tree.tokens:
        if token.i in same or token.text.isspace():
            continue
        start = token.start
        if previous == token.i - 1:
            start = spans.pop()[0]
        spans.append((start, token.end))
        previous = token.i
    return spans


def _without_leading_words(kept: list[Token], cuts: Cuts) -> list[Token]:
    """A scene that lost its subject does not begin with a preposition or conjunction."""
    before = [token for token in kept if token.i <= cuts.begins_after]
    scene = kept[len(before) :]
    comma = [token.text for token in scene[:1]] == [","]
    if before and comma and any(token.pos in _BEGIN_MEMBER for token in scene[1:2]):
        scene = scene[1:]  # "a picture of an apple, a cup and a dog"
    elif before and scene and (scene[0].text in _CLOSING or _says_how(scene[0])):
        return before[:-1] + scene
    if cuts.lost_subject and scene and scene[0].i > cuts.begins_after + 1:
        scene = scene[_leading_words(scene) :]
    return before + scene if scene else before[:-1]


def _leading_words(tokens: Sequence[Token]) -> int:
    """How many tokens come before the first that a scene can begin with."""
    first = 0
    while first < len(tokens):
        if tokens[first].pos in ("ADP", "PART", "PUNCT", "CCONJ", "SCONJ", "AUX"):
            first += 1 + _complex_preposition(tokens[first + 1 : first + 4])
        elif words := _adverb_or_pronoun(tokens[first : first + 2]):
            first += words
        else:
            break
    return first


def _says_how(preposition: Token) -> bool:
    """Whether a phrase describes the picture, not its scene: "by Monet", "in the style of Monet"."""
    style = any(child.lower == "style" for child in preposition.rights)
    return preposition.lower == "by" or (preposition.dep == "prep" and style)


def _complex_preposition(tokens: Sequence[Token]) -> int:
    """How many of the next three tokens still belong to a preposition: "the left of"."""
    words = [token.lower for token in tokens]
    noun = 1 if words[:1] == ["the"] else 0
    if words[noun + 1 : noun + 2] in (["of"], ["to"]) and words[noun] in RELATIONAL_NOUNS:
        return noun + 2
    return 0


def _adverb_or_pronoun(tokens: Sequence[Token]) -> int:
    """How many of two tokens say where or with whom, and nothing more: "next to", "each other"."""
    word, following = tokens[0], tokens[-1]
    adverb = word.pos in ("ADV", "ADJ") and following.pos == "ADP" and following.head is word
    return 2 if adverb or (word.lower, following.lower) == ("each", "other") else 0


def _without_trailing_pronouns(kept: list[Token], cuts: Cuts) -> list[Token]:
    """A conjunction or pronoun at the end has lost what it led to."""
    words = [token for token in kept if token.text not in _CLOSING]
    if not words or words[-1].i + 1 not in cuts.gone:
        return kept
    left = words
    while len(left) > 1 and _leads_to_nothing(left[-1], words[len(left) :]):
        left = left[:-1]
    return [token for token in kept if token not in words or token in left]


def _leads_to_nothing(token: Token, removed: Sequence[Token]) -> bool:
    """Whether a last word, or one before words that are `removed`, has lost its meaning: "one of them"."""
    preposition = token.head
    partitive = preposition.lower == "of" and preposition.head.lower not in RELATIONAL_NOUNS
    if token.dep == "pobj" and preposition.i < token.i and not partitive:
        return False  # "behind her", "in front of her"
    of_nothing = token.lower == "of" and bool(removed)
    return of_nothing or token.tag in _LEADING_TAGS or token.dep == "cc"


def _without_stray_commas(kept: list[Token], cuts: Cuts) -> list[Token]:
    """Removes the commas around a clause that is gone, and those at the beginning and the end."""
    pairs = [(a, b) for a, b in pairwise(kept) if a.text == "," and b.text == "," and b.i > a.i + 1]
    kept = [token for token in kept if not any(token in pair for pair in pairs)]
    kept = [t for t, n in zip_longest(kept, kept[1:]) if not _is_stray(t, n, cuts)]
    while kept and (kept[0].text in _CLOSING or (kept[0].dep == "cc" and kept[0].i)):
        kept = kept[1:]
    return kept


def _is_stray(token: Token, following: Token | None, cuts: Cuts) -> bool:
    """Whether a comma or conjunction has nothing left to join to what follows."""
    if token.i in cuts.replaced:
        return False
    at_gap = following is None or following.i > token.i + 1
    if token.text in (",", ";", ":"):
        return following is None or (at_gap and following.text in _CLOSING)
    joins = token.lower in ("and", "or")
    return joins and following is not None and at_gap and following.lower in ("and", "or")


def _article(article: str, following: Token) -> str:
    """The indefinite article that `following` needs, capitalized as before."""
    new = with_article(following.text).split()[0]
    return new.capitalize() if article[0].isupper() else new
