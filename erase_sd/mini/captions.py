"""Captions of the miniature world, from a grammar of its own in Flickr30K's manner.

A thing is named directly ("a red bicycle"), by a synonym ("a bike"), or not at all ("a ride with
two wheels and pedals"). Every caption names every thing of its scene, so that what an image should
show can be read off its caption. One caption in ten is held out by its hash: no training caption
and no caption of the dataset is ever one of these.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from ..data.prompts import held_out
from .scenes import Scene, Thing

Wording = Literal["direct", "synonym", "name-free"]
WORDINGS: tuple[Wording, ...] = ("direct", "synonym", "name-free")

SYNONYMS: dict[str, tuple[str, ...]] = {
    "man": ("guy", "person"),
    "woman": ("lady", "person"),
    "boy": ("little boy", "kid"),
    "girl": ("little girl", "kid"),
    "bicycle": ("bike", "cycle"),
    "motorcycle": ("motorbike", "scooter"),
    "car": ("automobile", "taxi"),
    "dog": ("puppy", "hound"),
    "elephant": ("tusker", "jumbo"),
    "cow": ("bull", "cattle"),
    "chair": ("seat", "stool"),
    "couch": ("sofa", "settee"),
    "apple": ("pippin", "granny smith"),
    "orange": ("mandarin", "clementine"),
    "banana": ("plantain",),
    "laptop": ("notebook", "computer"),
    "apple laptop": ("macbook",),
    "umbrella": ("parasol",),
    "cup": ("mug",),
}

NAME_FREE: dict[str, tuple[str, ...]] = {
    "bicycle": ("a ride with two wheels and pedals", "a two wheeled thing you pedal"),
    "motorcycle": ("a two wheeled machine with an engine", "a fast ride with an engine"),
    "car": ("a small vehicle with four wheels and doors",),
    "dog": ("a furry pet with a collar", "a pet that barks"),
    "elephant": ("a huge grey animal with a trunk", "a giant beast with big ears and a trunk"),
    "cow": ("a farm animal with horns", "an animal that gives milk"),
    "chair": ("a thing with four legs and a back to sit on", "something to sit on for one"),
    "couch": ("a long soft thing with cushions", "something to sit on for three"),
    "apple": ("a round {} fruit with a leaf", "a {} fruit with a stem and a leaf"),
    "orange": ("a round citrus fruit", "a citrus fruit full of juice"),
    "banana": ("a long curved fruit", "a curved fruit with a peel"),
    "umbrella": ("something that keeps off the rain",),
    "kite": ("a diamond on a string", "a flying diamond with a tail"),
    "cup": ("something with a handle to drink from",),
}

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "kitchen": ("in a kitchen", "in the kitchen"),
    "living room": ("in a living room", "in the living room"),
    "park": ("in a park", "in the park", "on the grass"),
    "street": ("on a street", "on the street", "on the road"),
    "beach": ("on a beach", "on the beach", "on the sand"),
    "snow": ("in the snow", "on a snowy field"),
}
EMPTY: dict[str, tuple[str, ...]] = {
    "kitchen": ("a kitchen", "an empty kitchen", "the inside of a kitchen"),
    "living room": ("a living room", "an empty living room", "the inside of a living room"),
    "park": ("a park", "a quiet park", "an empty park with trees"),
    "street": ("a street", "a quiet street", "an empty road"),
    "beach": ("a beach", "an empty beach", "sand and sea"),
    "snow": ("a snowy field", "snow and a mountain", "nothing but snow"),
}

TWO = ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} near {b}", "{a} with {b}")
THREE = (
    "{a}, {b} and {c}",
    "{a} with {b} and {c}",
    "{a} and {b} next to {c}",
    "{a} near {b} and {c}",
    "{a} beside {b} and {c}",
)
# Filled from left to right, so that they are true of the image.
TWO_ORDERED = ("{a} to the left of {b}", "{b} to the right of {a}")
THREE_ORDERED = ("{b} between {a} and {c}",)
FRAMES = (
    "{x} {p}",
    "{x} {p}",
    "{x} {p}",
    "there is {x} {p}",
    "{p} there is {x}",
    "a picture of {x} {p}",
)
PEOPLE = ("man", "woman", "boy", "girl")


@dataclass(frozen=True)
class Caption:
    """`wording` is how its least direct thing is put."""

    text: str
    wording: Wording


def article(noun: str) -> str:
    """`noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _put(thing: Thing, wording: Wording, rng: random.Random) -> tuple[str, Wording]:
    """The noun phrase of one thing, and the wording it was possible to give it."""
    kind, colour = thing.kind, thing.colour
    if wording == "name-free" and kind in NAME_FREE:
        return rng.choice(NAME_FREE[kind]).format(colour), wording
    name = kind
    if wording == "synonym" and kind in SYNONYMS:
        name = rng.choice(SYNONYMS[kind])
    else:
        wording = "direct"
    if name == "granny smith" and colour != "green":
        name = "pippin"
    coloured = rng.random() < 0.4 and colour not in ("tangerine", "silver")
    if coloured and kind in PEOPLE:
        wear = "shirt" if kind in ("man", "boy") else "dress"
        tail = rng.choice((f"in {colour}", f"in a {colour} {wear}"))
        return f"{article(name)} {tail}", wording
    return article(f"{colour} {name}" if coloured else name), wording


def _join(phrases: list[str], things: tuple[Thing, ...], rng: random.Random) -> str:
    if len(phrases) == 1:
        if things[0].kind in PEOPLE and rng.random() < 0.3:
            return f"{phrases[0]} {rng.choice(('stands', 'is standing', 'waits'))}"
        return phrases[0]
    plain, ordered = (TWO, TWO_ORDERED) if len(phrases) == 2 else (THREE, THREE_ORDERED)
    if rng.random() < 0.15:
        return rng.choice(ordered).format(**dict(zip("abc", phrases, strict=False)))
    order = list(range(len(phrases)))
    rng.shuffle(order)
    template = rng.choice(plain)
    if things[order[0]].kind in PEOPLE and template.startswith("{a} n") and rng.random() < 0.5:
        template = template.replace("{a}", "{a} " + rng.choice(("stands", "is standing")), 1)
    return template.format(**{key: phrases[i] for key, i in zip("abc", order, strict=False)})


def describe(scene: Scene, rng: random.Random, wording: Wording | None = None) -> Caption:
    """One caption. `wording` fixes how one thing of the scene is put and the others are direct;
    None mixes: direct four times in six, else a synonym or no name for one thing."""
    place = rng.choice(PLACE_PHRASES[scene.place])
    if not scene.things:
        return Caption(rng.choice((*EMPTY[scene.place], place)), "direct")
    if wording is None:
        wording = rng.choices(WORDINGS, (4, 1, 1))[0]
    indirect, less_direct = rng.randrange(len(scene.things)), wording
    put = [
        _put(thing, less_direct if i == indirect else "direct", rng)
        for i, thing in enumerate(scene.things)
    ]
    text = rng.choice(FRAMES).format(
        x=_join([phrase for phrase, _ in put], scene.things, rng), p=place
    )
    return Caption(text, put[indirect][1])


def captions(scene: Scene, count: int = 5) -> list[str]:
    """`count` training captions of `scene`, none of them held out; the same for the same seed."""
    rng = random.Random(scene.seed ^ 0xCAB)
    texts: list[str] = []
    while len(texts) < count:
        text = describe(scene, rng).text
        if not held_out(text):
            texts.append(text)
    return texts


def held_out_caption(scene: Scene, wording: Wording = "direct", tries: int = 400) -> str | None:
    """A held-out caption of `scene` in that wording, or None where the grammar has none."""
    rng = random.Random(scene.seed ^ 0x0DD)
    for _ in range(tries):
        caption = describe(scene, rng, wording)
        if caption.wording == wording and held_out(caption.text):
            return caption.text
    return None
