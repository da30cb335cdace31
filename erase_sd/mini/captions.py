"""Captions of miniature scenes, from a grammar in the manner of Flickr30K.

A thing is worded directly ("a red bicycle"), by a synonym ("a bike"), or without a name ("a ride
with two wheels and pedals"). Every caption mentions every thing of its scene, so it tells what its
image should show. One caption in ten is held out by its hash: held-out captions occur neither in
training nor in the dataset.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from ..data.concept import with_article
from ..data.grammar import is_held_out
from .scenes import Scene, Thing

Wording = Literal["direct", "synonym", "name-free"]
WORDINGS: tuple[Wording, ...] = ("direct", "synonym", "name-free")

SYNONYM_WORDINGS: dict[str, tuple[str, ...]] = {
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

NAME_FREE_WORDINGS: dict[str, tuple[str, ...]] = {
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

_PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "kitchen": ("in a kitchen", "in the kitchen"),
    "living room": ("in a living room", "in the living room"),
    "park": ("in a park", "in the park", "on the grass"),
    "street": ("on a street", "on the street", "on the road"),
    "beach": ("on a beach", "on the beach", "on the sand"),
    "snow": ("in the snow", "on a snowy field"),
}
_EMPTY_PLACES: dict[str, tuple[str, ...]] = {
    "kitchen": ("a kitchen", "an empty kitchen", "the inside of a kitchen"),
    "living room": ("a living room", "an empty living room", "the inside of a living room"),
    "park": ("a park", "a quiet park", "an empty park with trees"),
    "street": ("a street", "a quiet street", "an empty road"),
    "beach": ("a beach", "an empty beach", "sand and sea"),
    "snow": ("a snowy field", "snow and a mountain", "nothing but snow"),
}

_TWO = ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} near {b}", "{a} with {b}")
_THREE = (
    "{a}, {b} and {c}",
    "{a} with {b} and {c}",
    "{a} and {b} next to {c}",
    "{a} near {b} and {c}",
    "{a} beside {b} and {c}",
)
# Filled in the things' order from left to right, so that they are true of the image.
_TWO_LEFT_TO_RIGHT = ("{a} to the left of {b}", "{b} to the right of {a}")
_THREE_LEFT_TO_RIGHT = ("{b} between {a} and {c}",)
_FRAMES = (
    "{x} {p}",
    "{x} {p}",
    "{x} {p}",
    "there is {x} {p}",
    "{p} there is {x}",
    "a picture of {x} {p}",
)
_PEOPLE = ("man", "woman", "boy", "girl")


@dataclass(frozen=True)
class SceneCaption:
    """A caption of a scene."""

    text: str
    wording: Wording
    """The wording of its least direct thing."""


def _thing_phrase(thing: Thing, wording: Wording, rng: random.Random) -> tuple[str, Wording]:
    """The noun phrase of a thing; worded directly if the kind lacks that wording."""
    kind, colour = thing.kind, thing.colour
    if wording == "name-free" and kind in NAME_FREE_WORDINGS:
        return rng.choice(NAME_FREE_WORDINGS[kind]).format(colour), wording
    name = kind
    if wording == "synonym" and kind in SYNONYM_WORDINGS:
        name = rng.choice(SYNONYM_WORDINGS[kind])
    else:
        wording = "direct"
    if name == "granny smith" and colour != "green":
        name = "pippin"
    coloured = rng.random() < 0.4 and colour not in ("tangerine", "silver")
    if coloured and kind in _PEOPLE:
        clothing = "shirt" if kind in ("man", "boy") else "dress"
        tail = rng.choice((f"in {colour}", f"in a {colour} {clothing}"))
        return f"{with_article(name)} {tail}", wording
    return with_article(f"{colour} {name}" if coloured else name), wording


def _join(phrases: list[str], things: tuple[Thing, ...], rng: random.Random) -> str:
    if len(phrases) == 1:
        if things[0].kind in _PEOPLE and rng.random() < 0.3:
            return f"{phrases[0]} {rng.choice(('stands', 'is standing', 'waits'))}"
        return phrases[0]
    templates, left_to_right = (
        (_TWO, _TWO_LEFT_TO_RIGHT) if len(phrases) == 2 else (_THREE, _THREE_LEFT_TO_RIGHT)
    )
    if rng.random() < 0.15:
        return rng.choice(left_to_right).format(**dict(zip("abc", phrases, strict=False)))
    order = list(range(len(phrases)))
    rng.shuffle(order)
    template = rng.choice(templates)
    if things[order[0]].kind in _PEOPLE and template.startswith("{a} n") and rng.random() < 0.5:
        template = template.replace("{a}", "{a} " + rng.choice(("stands", "is standing")), 1)
    return template.format(**{key: phrases[i] for key, i in zip("abc", order, strict=False)})


def describe_scene(
    scene: Scene, rng: random.Random, wording: Wording | None = None
) -> SceneCaption:
    """A random caption. `wording` applies to one thing, the others are worded directly; None
    chooses: direct four times in six, else a synonym or no name."""
    place = rng.choice(_PLACE_PHRASES[scene.place])
    if not scene.things:
        return SceneCaption(rng.choice((*_EMPTY_PLACES[scene.place], place)), "direct")
    if wording is None:
        wording = rng.choices(WORDINGS, (4, 1, 1))[0]
    indirect, least_direct = rng.randrange(len(scene.things)), wording
    phrases = [
        _thing_phrase(thing, least_direct if i == indirect else "direct", rng)
        for i, thing in enumerate(scene.things)
    ]
    text = rng.choice(_FRAMES).format(
        x=_join([phrase for phrase, _ in phrases], scene.things, rng), p=place
    )
    return SceneCaption(text, phrases[indirect][1])


def training_captions(scene: Scene, count: int = 5) -> list[str]:
    """`count` captions of a scene that are not held out; the same for the same scene."""
    rng = random.Random(scene.seed ^ 0xCAB)
    texts: list[str] = []
    while len(texts) < count:
        text = describe_scene(scene, rng).text
        if not is_held_out(text):
            texts.append(text)
    return texts


def held_out_caption(scene: Scene, wording: Wording = "direct", tries: int = 400) -> str | None:
    """A held-out caption of a scene in the given wording, or None if `tries` find none."""
    rng = random.Random(scene.seed ^ 0x0DD)
    for _ in range(tries):
        caption = describe_scene(scene, rng, wording)
        if caption.wording == wording and is_held_out(caption.text):
            return caption.text
    return None
