"""Which tokens a mention takes with it: its noun phrase, and its place in a coordination or clause."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .removal_cuts import (
    Cuts,
    begins_scene,
    clause_lost_subject,
    content_takes_over,
    has_determiner,
    is_one_of,
    preposition_lost_object,
    says_only_where,
    subtree,
    verb_lost_object,
)
from .syntax import MASS_NOUNS, PARTITIVE_NOUNS, PICTURES
from .tree import Token

_BEFORE_NOUN = frozenset((
    "advmod", "amod", "case", "compound", "det", "neg", "nmod", "npadvmod", "nummod", "poss",
    "preconj", "predet", "punct", "quantmod",
))  # fmt: skip
"""Labels of what stands before a noun in its phrase."""
_NOUNS = ("NOUN", "PROPN")
_DEFINITE = ("the", "this", "that", "these", "those")


def cut_mentions(cuts: Cuts, mentions: Sequence[Sequence[Token]]) -> None:
    """Cuts mentions, in the order of the text, out of the tree, with what cannot stand without them.

    Mentions that a list begins with or consists of are cut as one: the first stands for all.
    """
    by_noun = {_head_of(mention).i: mention for mention in sorted(mentions, key=len)}
    cuts.nouns.update(by_noun)
    for mention in mentions:
        if not cuts.kept(mention):
            continue
        noun = _head_of(mention)
        together = list(itertools.takewhile(lambda member: member.i in by_noun, _list_of(noun)))
        if together and together[0] is noun:
            for member in together[1:]:
                _drop_phrase(cuts, member, by_noun[member.i])
            joints = (c for member in together for c in member.rights if c.i < together[-1].i)
            cuts.drop(*(c for c in joints if c.dep in ("cc", "punct")))
        _cut_mention(cuts, by_noun[noun.i])


def _list_of(noun: Token) -> list[Token]:
    """All members of the coordination that a noun belongs to, in the order of the text, or the noun alone.

    In "a cup, an apple and a dog", the parser may take the apple for an apposition.
    """
    while noun.dep in ("conj", "appos") and _is_noun(noun.head):
        noun = noun.head
    return sorted(_members_from(noun), key=lambda member: member.i)


def _members_from(noun: Token) -> list[Token]:
    below = [c for c in noun.rights if c.dep in ("conj", "appos") and _is_noun(c)]
    return [noun, *(member for token in below for member in _members_from(token))]


def _cut_with(cuts: Cuts, noun: Token) -> list[Token]:
    """The members that follow a noun in its list, up to the first that is kept: they went with it."""
    later = (member for member in _list_of(noun) if member.i > noun.i)
    return list(itertools.takewhile(lambda member: not cuts.keeps(member), later))


def _cut_mention(cuts: Cuts, mention: Sequence[Token]) -> None:
    """Cuts one mention."""
    noun = _head_of(mention)
    inside = noun.head in mention
    if noun.pos == "VERB":  # a noun that the parser read as a verb
        cuts.drop(*mention)
    elif not inside and _is_misread_subject(noun):
        cuts.drop(*_noun_phrase(noun, mention), noun.head, *noun.head.lefts)
        clause_lost_subject(cuts, noun.head)
    elif not inside and _modifies_noun(noun):
        _cut_modifier(cuts, noun, mention)
    else:
        _cut_phrase(cuts, noun, mention)


def _head_of(mention: Sequence[Token]) -> Token:
    """The mention's noun, which comes before what modifies it: "fruit" of "fruit with a leaf"."""
    after = (i for i, t in enumerate(mention) if i and t.pos in ("ADP", "PART", "VERB"))
    before = mention[: next(after, len(mention))]
    outside = [t for t in reversed(before) if t.head not in before or t.head == t]
    return next((t for t in outside if t.pos in _NOUNS), outside[0])


def _is_misread_subject(noun: Token) -> bool:
    """Whether a verb was read as a noun: "dogs run" as "run of dogs"."""
    head = noun.head
    plural_modifier = noun.dep == "compound" and noun.tag in ("NNS", "NNPS")
    return plural_modifier and head.tag == "NN" and head.dep == "ROOT" and head.i == noun.i + 1


def _modifies_noun(noun: Token) -> bool:
    """Whether the mention only says of what kind or whose a later noun is: "a chair leg"."""
    labels = ("compound", "amod", "nmod", "poss", "npadvmod")
    return noun.dep in labels and noun.head.pos in (*_NOUNS, "ADJ") and noun.head.i > noun.i


def _cut_modifier(cuts: Cuts, noun: Token, mention: Sequence[Token]) -> None:
    """Removes a modifier and leaves its noun: "a tall chair's leg" becomes "the leg"."""
    cuts.drop(*mention)
    if noun.dep != "poss":
        return
    cuts.drop(*(c for c in noun.lefts if c.dep in ("amod", "nummod")))
    cuts.drop(*(c for c in noun.rights if c.dep == "case"))
    for determiner in (c for c in noun.lefts if c.dep == "det" and c.lower not in _DEFINITE):
        if noun.head.tag in ("NN", "NNP") and noun.head.lower not in MASS_NOUNS:
            cuts.replaced[determiner.i] = "the"
        else:
            cuts.drop(determiner)


def _cut_phrase(cuts: Cuts, noun: Token, mention: Sequence[Token]) -> None:
    """Removes a noun phrase, and mends the coordination or the clause that it leaves."""
    phrase, head = _drop_phrase(cuts, noun, mention), noun.head
    if content_takes_over(cuts, noun, phrase):
        return
    of = noun.dep == "pobj" and head.lower == "of"
    partitive = of and is_one_of(head.head, PARTITIVE_NOUNS)
    if partitive:
        cuts.drop(head, *_noun_phrase(head.head, [head.head]))
    elif of and head.head.dep == "ROOT" and is_one_of(head.head, PICTURES):
        cuts.begins_after = head.i
    if _coordination_closes(cuts, noun, phrase):
        return
    if partitive:
        _cut_phrase(cuts, head.head, [head.head, *mention])  # "a pair of scissors"
    elif cuts.begins_after == head.i:
        _fragment_lost_head(cuts, [*mention, *_cut_with(cuts, noun), head.head])
    elif noun.dep == "pobj":
        preposition_lost_object(cuts, head)
    elif noun.dep in ("dobj", "dative", "oprd", "attr"):
        verb_lost_object(cuts, head)
        if _owners(noun) and not cuts.keeps(head):  # "riding a man's bike" becomes "with a man"
            cuts.gone.discard(head.i)
            cuts.replaced[head.i] = "with"
    elif noun.dep in ("nsubj", "nsubjpass") and head.pos in ("VERB", "AUX"):
        cuts.drop(*(token for token in noun.rights if token.dep == "punct"))
        clause_lost_subject(cuts, head)
    elif noun.dep in ("ROOT", "ccomp", "nsubj", "nsubjpass"):
        _fragment_lost_head(cuts, [*mention, *_cut_with(cuts, noun)])


def _owners(noun: Token) -> list[Token]:
    """The nouns in a noun's phrase that say whose it is."""
    return [c for c in noun.lefts if c.dep == "poss" and c.pos in _NOUNS]


def _drop_phrase(cuts: Cuts, noun: Token, mention: Sequence[Token]) -> list[Token]:
    """Removes a noun phrase except its owner, and returns its tokens."""
    kept_owner = {t.i for owner in _owners(noun)[:1] for t in owner.subtree if t.dep != "case"}
    phrase = [token for token in _noun_phrase(noun, mention) if token.i not in kept_owner]
    cuts.drop(*phrase)
    cuts.drop(*subtree(c for c in noun.rights if c.dep == "prep" and says_only_where(c)))
    return phrase


def _noun_phrase(noun: Token, mention: Sequence[Token]) -> list[Token]:
    """The mention with its determiners, adjectives, numbers and possessors."""
    coordinated = (*_BEFORE_NOUN, "conj", "cc")  # "red and green apples"
    before = [c for c in noun.lefts if c.dep in coordinated]
    before += [c for token in mention for c in token.lefts if c.dep in _BEFORE_NOUN]
    phrase = [*mention, *subtree(before), *(c for c in noun.rights if c.dep == "case")]
    last = max(token.i for token in mention)
    return [token for token in phrase if token.i <= last + 1]


def _coordination_closes(cuts: Cuts, noun: Token, phrase: Sequence[Token]) -> bool:
    """Joins the other members of the mention's coordination; False if it has none."""
    first, *later = _list_of(noun)
    joined = any(c.dep == "cc" for member in (first, *later) for c in member.rights)
    last = max(token.i for token in phrase)
    conjuncts = [c for c in noun.rights if c.dep == "conj"]
    if joined and [t.text for t in cuts.tree.tokens[last + 1 : last + 2]] == [","]:
        conjuncts += [c for c in noun.rights if c.dep == "appos" and c.subtree[0].i == last + 2]
    # Not "trunk" of the mention "beast with a trunk", which is gone.
    members = following = [c for c in cuts.kept(conjuncts) if _is_noun(c)]
    begins = begins_scene(cuts, noun)
    if begins and not joined and not any(map(has_determiner, members)):
        return False  # "an apple, studio lighting, 4k"
    if noun is first and any(member.i in cuts.nouns for member in later):
        following = [member for member in later if member.i not in cuts.nouns]
    in_list = noun.dep == "appos" and any(c.dep == "cc" for c in noun.rights)
    if noun.dep == "conj" or (in_list and members):  # "a cup, an apple and a dog"
        _join_before(cuts, noun, phrase, is_last=not following)
        return True
    if not following:
        return False
    member = following[0]
    start = min(token.i for token in (*member.lefts, member))
    between = cuts.tree.tokens[last + 1 : start]
    after = (c for token in (noun, *_cut_with(cuts, noun)) for c in token.rights if c.i < member.i)
    if begins and cuts.kept(c for c in after if c.dep == "prep"):
        return False  # "an apple near a cup and a dog" becomes "a cup and a dog"
    cuts.drop(*(token for token in between if token.dep in ("cc", "punct")))
    determiners = [c for c in noun.lefts if c.dep in ("det", "poss") and c.i not in cuts.nouns]
    if determiners and not has_determiner(member) and member.tag in ("NN", "NNP"):
        cuts.gone.discard(determiners[0].i)  # "an apple and orange" becomes "an orange"
    return True


def _is_noun(token: Token) -> bool:
    """Whether a member of a coordination is a noun and not a verb in disguise ("and eating")."""
    gerund = token.lower.endswith("ing") and not list(token.lefts)
    return token.pos in (*_NOUNS, "PRON") and token.tag != "VBG" and not gerund


def _join_before(cuts: Cuts, noun: Token, phrase: Sequence[Token], is_last: bool) -> None:
    """Removes the comma or conjunction before a member; the member before the last gets an "and"."""
    position, had_conjunction = min(token.i for token in phrase) - 1, False
    while position >= 0:
        token = cuts.tree.tokens[position]
        if not (token.dep == "cc" or token.text == "," or not cuts.keeps(token)):
            break
        had_conjunction |= token.dep == "cc"
        cuts.drop(token)
        position -= 1
    if had_conjunction and is_last:
        while position > 0 and cuts.tree.tokens[position].pos in (*_NOUNS, "ADJ", "DET", "NUM"):
            position -= 1
        if 0 < position < noun.i and cuts.tree.tokens[position].text == ",":
            cuts.replaced[position] = " and"


def _fragment_lost_head(cuts: Cuts, tokens: Sequence[Token]) -> None:
    """A caption that is a noun phrase, "a dog running on grass", loses its noun and begins anew.

    `tokens` are all words that are gone: of "a fruit with a leaf on a table", the parser may attach the
    table to the leaf.
    """
    for child in cuts.kept(c for token in tokens for c in token.rights):
        if child.dep in ("acl", "relcl") and child.pos in ("VERB", "AUX"):
            clause_lost_subject(cuts, child)
        elif child.dep in ("prep", "advmod"):
            cuts.lost_subject = True
