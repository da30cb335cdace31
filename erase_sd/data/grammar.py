"""Captions without a dataset: a small grammar of everyday things, colours and places."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence

from ..errors import DataError
from .concept import Concept, with_article

GRAMMAR_VERSION = 2
"""Raised whenever a word or number in this file changes."""
FORGET_SCENES = 120
"""Scenes with each concept."""
RETAIN_SCENES = 240
"""Scenes without any concept."""
CAPTIONS_PER_SCENE = 5

_PEOPLE = ("man", "woman", "boy", "girl", "child")
_THINGS = (
    "bicycle", "motorcycle", "car", "bus", "train", "truck", "boat", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "suitcase", "kite", "ball", "skateboard", "surfboard", "bottle", "cup", "knife", "spoon", "bowl",
    "banana", "apple", "orange", "sandwich", "pizza", "cake", "chair", "couch", "bed", "table",
    "laptop", "keyboard", "phone", "book", "clock", "vase", "tree", "house", "lamp", "hat", "guitar",
    "flower", "ladder", "bridge", "tent", "door",
)  # fmt: skip
_COLOURS = ("red", "green", "blue", "black", "white", "brown", "yellow", "purple")
_PLACES = (
    "in a kitchen", "in a living room", "in a park", "on a street", "on a beach", "in the snow",
    "on the grass", "on the road", "on the sand", "in a garden", "in a field", "in front of a wall",
)  # fmt: skip
_SENTENCES = (
    "{x} {p}", "{x} {p}", "there is {x} {p}", "{p} there is {x}", "a picture of {x} {p}", "{x}",
)  # fmt: skip
_JOINS = {
    1: ("{a}",),
    2: ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} near {b}", "{a} with {b}"),
    3: ("{a}, {b} and {c}", "{a} with {b} and {c}", "{a} and {b} next to {c}"),
}


def is_held_out(text: str) -> bool:
    """Whether a grammar's caption is held out from all training: one in ten, by its hash.

    The rule holds for every grammar, so that a held-out caption of one can serve as a prompt for a
    model trained on another.
    """
    return zlib.crc32(text.lower().encode()) % 10 == 0


def grammar_captions(
    concepts: Sequence[Concept], fits: Callable[[str], bool] = lambda _: True, seed: int = 0
) -> list[list[str]]:
    """Five captions per scene: first the scenes with each concept, then those without any.

    A concept is called by its name or a synonym; its kept senses appear in the scenes without it.
    `fits` tells whether a caption is within the model's context length. Raises DataError if no
    caption of a scene is.
    """
    rng = random.Random(seed)
    things = [t for t in _THINGS if not any(c.in_text(t) for c in concepts)]
    people = [p for p in _PEOPLE if not any(c.in_text(p) for c in concepts)]
    kept = [sense for concept in concepts for sense in concept.keep_senses]
    firsts = [[rng.choice((c.name, *c.synonyms))] for c in concepts for _ in range(FORGET_SCENES)]
    firsts += [[rng.choice(kept)] if kept and i % 8 == 0 else [] for i in range(RETAIN_SCENES)]
    return [_scene_captions(first, things, people, fits, rng) for first in firsts]


def _scene_captions(
    first: list[str],
    things: list[str],
    people: list[str],
    fits: Callable[[str], bool],
    rng: random.Random,
) -> list[str]:
    """Five captions of one scene of up to three things in one place, none of them held out."""
    for _ in range(100):
        pool = rng.sample(things, 3)
        if people and rng.random() < 0.4:
            pool.insert(0, rng.choice(people))
        shown = (first + pool)[: rng.choice((1, 2, 2, 3))]
        colours = [rng.choice(_COLOURS) if rng.random() < 0.3 else "" for _ in shown]
        place = rng.choice(_PLACES)
        sentences = (_sentence(shown, colours, place, rng) for _ in range(40))
        texts = [text for text in sentences if fits(text) and not is_held_out(text)]
        if len(texts) >= CAPTIONS_PER_SCENE:
            return texts[:CAPTIONS_PER_SCENE]
    raise DataError(
        f"every caption with {(first or things)[0]} exceeds the model's context length; choose a "
        "shorter name or synonym",
        field="concept",
    )


def _sentence(things: list[str], colours: list[str], place: str, rng: random.Random) -> str:
    coloured = [
        (colour if thing not in _PEOPLE else "", thing)
        for thing, colour in zip(things, colours, strict=True)
    ]
    rng.shuffle(coloured)
    phrases = [with_article(f"{colour} {thing}".strip()) for colour, thing in coloured]
    join = rng.choice(_JOINS[len(phrases)])
    return rng.choice(_SENTENCES).format(
        x=join.format(**dict(zip("abc", phrases, strict=False))), p=place
    )
