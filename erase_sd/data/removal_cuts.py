"""The cuts in a caption's syntax tree that remove a concept, and the clause around a gap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .syntax import (
    BE,
    BODY_PARTS,
    CONTAINERS,
    PARTITIVE_NOUNS,
    PLACE_ADVERBS,
    RELATIONAL_NOUNS,
    is_dative_verb,
    needs_object,
    stands_without_object,
)
from .tree import Token, Tree

PRONOUN_TAGS = frozenset(("PRP", "DT", "WP", "WDT", "PRP$", "CD", "PDT"))
"""Pronouns and quantifiers, which mean nothing without the noun that they stand for."""
_SUBJECTS = ("nsubj", "nsubjpass")
_VERBS = ("VERB", "AUX")


@dataclass
class Cuts:
    """The tokens of a caption that are removed or replaced, by their positions in `tree`."""

    tree: Tree
    nouns: set[int] = field(default_factory=set)
    """Positions of the nouns of all mentions."""
    gone: set[int] = field(default_factory=set)
    replaced: dict[int, str] = field(default_factory=dict)
    begins_after: int = -1
    """Position of the word before the scene: "of" in "a picture of", "is" in "there is"."""
    lost_subject: bool = False
    """Whether the scene's subject is gone, so that its first preposition goes too."""

    def drop(self, *tokens: Token) -> None:
        """Removes tokens."""
        self.gone.update(token.i for token in tokens)

    def keeps(self, token: Token) -> bool:
        """Whether a token is still there."""
        return token.i not in self.gone

    def kept(self, tokens: Iterable[Token]) -> list[Token]:
        """Those of the tokens that are still there."""
        return [token for token in tokens if self.keeps(token)]


def subtree(tokens: Iterable[Token]) -> list[Token]:
    """The tokens with everything that depends on them."""
    return [below for token in tokens for below in token.subtree]


def begins_scene(cuts: Cuts, noun: Token) -> bool:
    """Whether the scene begins with a noun: "an apple on ...", "there is an apple on ..."."""
    there = noun.dep == "attr" and any(c.dep == "expl" for c in noun.head.lefts)
    return there or noun.dep == "ROOT" or cuts.begins_after == noun.head.i


def says_only_where(preposition: Token) -> bool:
    """Whether a preposition's phrase merely says who has the thing: "in his hand", "on it"."""
    objects = [token for token in preposition.subtree if token.dep == "pobj"]
    if not objects:
        return False
    if objects[-1].tag == "PRP":
        return True
    (first, *others) = objects
    owned = any(c.dep == "poss" and c.tag == "PRP$" for c in first.children)
    return not others and owned and first.lower.removesuffix("s") in BODY_PARTS


def is_one_of(noun: Token, words: frozenset[str]) -> bool:
    """Whether a noun, in singular or plural, is in a list."""
    singular = {noun.lower, noun.lower.removesuffix("s"), noun.lower.removesuffix("es")}
    return noun.pos == "NOUN" and bool(singular & words)


def content_takes_over(cuts: Cuts, noun: Token, phrase: Sequence[Token]) -> bool:
    """Whether what follows "of" takes a noun's place: the content of a container, "a cup of coffee", or a
    thing of its own, "the water of the sea". Anything else only describes the noun: "a ball of snow"."""
    last = max(token.i for token in phrase)
    of = [c for c in noun.rights if c.i == last + 1 and c.dep == "prep" and c.lower == "of"]
    content = [token for preposition in of for token in preposition.rights]
    things = [c for c in content if c.pos == "PROPN" or has_determiner(c)]
    stays = bool(things) or (bool(content) and is_one_of(noun, CONTAINERS))
    if any(c.i in cuts.nouns or is_one_of(c, PARTITIVE_NOUNS) for c in content):
        stays = False
    cuts.drop(*(of if stays else subtree(of)))
    return stays


def has_determiner(noun: Token) -> bool:
    """Whether a noun has a determiner, an owner or a number."""
    return any(c.dep in ("det", "poss", "nummod") for c in noun.lefts)


def preposition_lost_object(cuts: Cuts, preposition: Token) -> None:
    """Removes a preposition and what it needs: "in front of", "looking at"."""
    cuts.drop(preposition)
    before = (c for c in preposition.lefts if c.dep in ("advmod", "neg"))
    cuts.drop(*subtree(before))
    head = preposition.head
    complex_preposition = head.dep == "pobj" and head.lower in RELATIONAL_NOUNS
    if complex_preposition and preposition.lower in ("of", "to"):
        cuts.drop(head, *head.lefts)
        preposition_lost_object(cuts, head.head)
        return
    function_word = head.pos in ("ADV", "ADP", "SCONJ", "ADJ")
    labels = ("advmod", "prep", "acomp") if preposition.lower == "to" else ("advmod", "prep")
    belongs = head.lower == "next" or (head.dep in labels and function_word)
    if head.i == preposition.i - 1 and belongs:
        cuts.drop(head, *subtree(head.lefts))
        head = head.head
    if head.pos in _VERBS and head.lower in BE:
        _be_lost_complement(cuts, head)
    elif needs_object(head.lower, preposition.lower, head.tag) and "dobj" not in (
        child.dep for child in head.rights
    ):
        remove_verb(cuts, head)


def _be_lost_complement(cuts: Cuts, verb: Token) -> None:
    """Removes a form of "be" unless something else follows it."""
    grammatical = ("nsubj", "punct", "mark", "cc", "aux", "expl", "neg")
    if all(child.dep in grammatical for child in cuts.kept(verb.children)):
        remove_verb(cuts, verb)


def verb_lost_object(cuts: Cuts, verb: Token) -> None:
    """Removes a verb that cannot stand without its object."""
    if verb.pos not in _VERBS or stands_without_object(verb.lower):
        return
    if verb.lower in BE and any(child.dep == "expl" for child in verb.lefts):
        following = [token for token in cuts.kept(verb.subtree) if token.i > verb.i]
        place = any(t.pos == "NOUN" for t in following) and following[0].pos not in ("PRON", "VERB")
        if place and verb.lefts[0].dep == "prep":
            cuts.begins_after, cuts.lost_subject = verb.i, True
            return  # "in a park there is an apple near a dog" becomes "in a park there is a dog"
        cuts.drop(*(child for child in verb.lefts if child.dep == "expl"))
        clause_lost_subject(cuts, verb)  # "there is an apple on a table" becomes "a table"
        return
    if is_dative_verb(verb.lower):
        to = [c for c in verb.rights if c.dep in ("dative", "prep") and c.lower == "to"]
        if to := cuts.kept(to):
            cuts.drop(to[0])  # "feeding apples to a horse" becomes "feeding a horse"
            return
    remove_verb(cuts, verb)


def remove_verb(cuts: Cuts, verb: Token) -> None:
    """Removes a verb with its auxiliaries and particles; its subject and adverbials stay."""
    if not cuts.keeps(verb):
        return
    cuts.drop(verb)
    if verb.dep in ("ROOT", "ccomp", "conj") and _adverbial_clause_takes_over(cuts, verb):
        return
    for child in cuts.kept(verb.children):
        pronoun = child.tag in PRONOUN_TAGS or child.lower in ("some", "both", "one", "each")
        if (
            child.dep in ("aux", "auxpass", "prt", "neg", "agent")
            or (child.dep == "advmod" and child.lower in ("also", "each", "not", "just", "only"))
            or (child.dep == "prep" and says_only_where(child))
            or (child.dep in _SUBJECTS and pronoun)
        ):
            cuts.drop(*child.subtree)
    rest = [
        child
        for child in cuts.kept(verb.children)
        if child.dep not in (*_SUBJECTS, "mark", "cc", "punct")
    ]
    if all(child.dep == "conj" for child in rest):
        marks = [child for child in verb.lefts if child.dep == "mark"]
        if not any(child.dep in _SUBJECTS for child in cuts.kept(verb.lefts)):
            cuts.drop(*marks)
        elif marks and marks[0].lower != "for":  # "a man sleeps while a dog holds a ball"
            cuts.replaced[marks[0].i] = "and"
    _join_around(cuts, verb, bool(rest))
    if verb.dep == "pcomp":
        _preposition_lost_clause(cuts, verb.head)


def _preposition_lost_clause(cuts: Cuts, preposition: Token) -> None:
    """Removes a preposition unless a noun phrase of its clause follows: "with a man watching"."""
    if preposition.lower in PLACE_ADVERBS:
        return
    left = [token for token in cuts.kept(preposition.subtree) if token.i > preposition.i]
    if not left:
        preposition_lost_object(cuts, preposition)
    elif left[0].pos in ("ADP", "ADV", "PART", "SCONJ"):
        cuts.drop(preposition)


def _adverbial_clause_takes_over(cuts: Cuts, verb: Token) -> bool:
    """Lets "while sitting on grass" become the predicate of a caption whose verb is gone."""
    for clause in verb.rights:
        marks = [child for child in clause.children if child.dep == "mark"]
        own_subject = any(child.dep in _SUBJECTS for child in clause.children)
        if clause.dep == "advcl" and clause.tag == "VBG" and marks and not own_subject:
            cuts.drop(*marks)
            return True
    return False


def _join_around(cuts: Cuts, verb: Token, has_rest: bool) -> None:
    """Removes the conjunction that joined a removed verb to another."""
    if verb.dep != "conj":
        following = cuts.kept(c for c in verb.rights if c.dep == "conj")
        if following:
            cuts.drop(*(c for c in verb.rights if c.dep == "cc" and c.i < following[0].i))
        return
    position = verb.i - 1
    while position >= 0:
        token = cuts.tree.tokens[position]
        joins = token.dep == "cc" or token.text == ","
        if cuts.keeps(token) and not joins:
            return
        if not has_rest or token.dep == "cc":
            cuts.drop(token)
        position -= 1


def clause_lost_subject(cuts: Cuts, verb: Token) -> None:
    """Removes what a subject did; whom it did it to, and where, stay."""
    cuts.lost_subject = True
    cuts.drop(verb)
    for child in cuts.kept(verb.children):
        subject = child.dep in _SUBJECTS
        if child.dep in ("advmod", "acomp"):
            if not any(token.dep == "pobj" for token in child.subtree):
                cuts.drop(*child.subtree)
        elif child.dep in ("aux", "auxpass", "prt", "neg", "mark") or (
            subject and child.tag in PRONOUN_TAGS
        ):
            cuts.drop(*child.subtree)
        elif child.dep == "conj" and child.pos in _VERBS:
            if not any(below.dep in _SUBJECTS for below in child.children):
                clause_lost_subject(cuts, child)
        elif child.dep == "xcomp":
            clause_lost_subject(cuts, child)
        elif child.dep == "cc" or (
            child.dep in ("prep", "agent") and any(c.dep == "pcomp" for c in child.children)
        ):
            cuts.drop(child)
    if verb.dep == "pcomp":
        _preposition_lost_clause(cuts, verb.head)
