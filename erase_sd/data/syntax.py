"""English syntax: the trees of texts, and the words whose syntax removal needs to know.

Labels are ClearNLP's, as spaCy's English models give them: `nsubj` subject, `dobj` object, `pobj`
object of a preposition, `prep` preposition, `conj` and `cc` coordination, `acl` and `relcl` clauses
that modify a noun, `ROOT` the head of the caption. Tags are those of the Penn Treebank.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from .nouns import inflect_module
from .parses import trees_of
from .tree import Tree

_SURROGATE = re.compile("[\ud800-\udfff]")
_MIN_WORDS = 4
"""Captions shorter than this are too short to tell their language."""

_UNSPECIFIED_OBJECT = (
    "bake", "carve", "chew", "chop", "clean", "cook", "crochet", "dance", "drink", "drive", "dust",
    "eat", "embroider", "farm", "fight", "fish", "hunt", "iron", "juggle", "jump", "knead", "knit",
    "mend", "milk", "mow", "nurse", "paint", "pedal", "perform", "play", "plow", "polish", "practice",
    "read", "recite", "record", "ride", "row", "sail", "sculpt", "sew", "sing", "sketch", "smoke",
    "sow", "steer", "study", "sweep", "swing", "teach", "type", "vacuum", "wash", "watch", "weave",
    "whittle", "work", "wrestle", "write",
    "ate", "eaten", "drank", "drew", "drove", "ridden", "rode", "sang", "wrote",
)  # fmt: skip
"""Verbs that stand without their object: unspecified object alternation (Levin 1993, 1.2.1), and verbs
of motion by a vehicle (51.4)."""
_PEER = ("look", "stare", "gaze", "glance", "listen")
"""Verbs that need what they are directed at (Levin 1993, 30.3)."""
_HOLDING = ("holding", "clinging")
"""Verbs of holding and keeping, which need what is held (Levin 1993, 15.1)."""
_DATIVE = ("feed", "give", "hand", "lend", "offer", "pass", "sell", "serve", "show", "throw")
"""Verbs of giving, which keep their recipient as object (dative alternation, Levin 1993, 2.1)."""
RELATIONAL_NOUNS = frozenset((
    "act", "action", "amongst", "back", "base", "bottom", "center", "centre", "corner", "direction",
    "edge", "end", "foot", "front", "head", "inside", "left", "middle", "midst", "outside", "presence",
    "process", "rear", "right", "side", "top", "use",
))  # fmt: skip
"""Nouns of complex prepositions, "in front of" (Quirk et al. 1985, 9.10-11)."""
PARTITIVE_NOUNS = frozenset((
    "array", "assortment", "bit", "bunch", "collection", "couple", "display", "flock", "group",
    "herd", "kind", "lot", "number", "pack", "pair", "piece", "pile", "row", "set", "sort", "stack",
    "type", "variety",
))  # fmt: skip
"""Nouns that only count or measure what follows "of" (Quirk et al. 1985, 5.5-9): "a pair of scissors"."""
PICTURES = frozenset((
    "close-up", "closeup", "drawing", "illustration", "image", "painting", "photo", "photograph",
    "picture", "portrait", "render", "rendering", "shot", "sketch", "view", "watercolor",
))  # fmt: skip
"""Nouns for the picture itself; its scene follows "of"."""
CONTAINERS = frozenset((
    "bag", "barrel", "basket", "bottle", "bowl", "box", "bucket", "can", "carton", "crate", "cup",
    "glass", "jar", "jug", "mug", "pitcher", "plate", "pot", "table", "tray", "tub", "wheelbarrow",
))  # fmt: skip
"""Nouns that measure what follows "of" (Quirk et al. 1985, 5.8): without the cup, "a cup of tea" is "tea"."""
MASS_NOUNS = frozenset(("clothing", "food", "fur", "hair", "luggage", "pressure", "skin"))
"""Nouns without an article where nothing says whose: "cutting a man's hair"."""
PLACE_ADVERBS = frozenset(("around", "behind", "down", "inside", "outside", "up"))
"""What the parser may take for a preposition of a clause: "a boy is outside holding a ball"."""
BODY_PARTS = frozenset((
    "arm", "back", "beak", "chest", "ear", "eye", "face", "finger", "foot", "hand", "head", "hip",
    "knee", "lap", "leg", "mouth", "neck", "nose", "paw", "shoulder", "tooth", "waist", "wrist",
))  # fmt: skip
"""Where somebody has what the phrase names: "an apple in his hand"."""
BE = frozenset(("are", "be", "been", "being", "is", "was", "were", "'s"))

_NOUN_TAGS = ("NN", "NNS", "NNP", "NNPS")
_DETERMINER_TAGS = ("DT", "PDT", "PRP$")
_CONTENT = ("NOUN", "PROPN", "VERB", "NUM", "ADJ", "ADV")


def stands_without_object(word: str) -> bool:
    """Whether a verb, in any form, needs no object."""
    return word in _forms(_UNSPECIFIED_OBJECT)


def needs_object(verb: str, preposition: str, tag: str) -> bool:
    """Whether a verb with this tag cannot stand without the object of its preposition: "looking at"."""
    if verb in _HOLDING:
        return tag == "VBG" and preposition in ("on", "onto", "to")  # "he holds on" can
    return verb in _forms(_PEER) and preposition in ("at", "to", "through", "upon")


def is_dative_verb(word: str) -> bool:
    """Whether a verb, in any form, has a thing and a recipient."""
    return word in _forms(_DATIVE)


@functools.cache
def _forms(verbs: tuple[str, ...]) -> frozenset[str]:
    engine = inflect_module().engine()
    participles = (str(engine.present_participle(verb)) for verb in verbs)
    third_person = (str(engine.plural_noun(verb)) for verb in verbs)
    past = (verb + ending for verb in verbs for ending in ("d", "ed"))
    return frozenset((*verbs, *participles, *third_person, *past))


def parse(texts: Iterable[str]) -> Iterator[Tree]:
    """The syntax tree of each text, with the same character offsets; no text is parsed twice.

    A capital that only begins the text is lowered, because the parser takes it for a name's. Raises
    ModelError if the parser is not installed.
    """
    return trees_of([_plain(text) for text in texts])


def _plain(text: str) -> str:
    """The text with straight apostrophes and without the capital of its first word; half a surrogate
    pair, which has no UTF-8, becomes the replacement character."""
    text = _SURROGATE.sub("\ufffd", text.replace("\u2019", "'"))
    first = text[:1].lower()
    begins_sentence = text[1:2].islower() or text[:2] == "A "
    return first + text[1:] if begins_sentence and len(first) == 1 else text


def phrase_bounds(tree: Tree) -> tuple[set[int], set[int]]:
    """Character offsets at which a phrase that names a thing can begin and end.

    It begins at a word of a noun phrase, after its determiner, and ends after any content word or
    particle: "granny smith", "fruit with a leaf", "something to sit on".
    """
    starts = {
        token.start
        for tokens, head in tree.noun_phrases
        if head.tag in _NOUN_TAGS
        for token in tokens
        if token.tag not in _DETERMINER_TAGS
    }
    ends = {
        token.end
        for token in tree.tokens
        if token.pos in _CONTENT or token.tag in (*_NOUN_TAGS, "RP") or token.dep == "prep"
    }
    return starts, ends


def is_english(tree: Tree) -> bool:
    """Whether the parser can know the language of a text.

    It cannot if most letters are not Latin, or if, in a text of four words or more, it takes more than
    half of them for names or foreign words.
    """
    letters = [char for char in tree.text if char.isalpha()]
    latin = sum("LATIN" in unicodedata.name(char, "") for char in letters)
    words = [token for token in tree.tokens if token.text.isalpha()]
    names = sum(token.tag in ("NNP", "NNPS", "FW", "XX") for token in words)
    return 2 * latin >= len(letters) and (len(words) < _MIN_WORDS or 2 * names <= len(words))
