"""The twenty kinds of things: how each is drawn, its shape and its colours.

A kind is what a caption names. Several kinds can share a COCO class (man, woman, boy, girl: person),
see `scenes.CLASS_OF`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from . import living, objects
from .pen import Colour, Pen


class Drawing(NamedTuple):
    """How a kind of thing is drawn."""

    draw: Callable[[Pen, Colour, random.Random], None]
    """Draws on a transparent layer, whose alpha channel gives the ground-truth box."""
    aspect: float
    """Width / height."""
    colours: tuple[str, ...]
    """Colours it comes in, keys of `pen.PEN_COLOURS`."""


_BRIGHT = ("red", "blue", "green", "yellow", "purple")

THINGS: dict[str, Drawing] = {
    "man": Drawing(partial(living.draw_person, dress=False, child=False), 0.46, _BRIGHT),
    "woman": Drawing(partial(living.draw_person, dress=True, child=False), 0.50, _BRIGHT),
    "boy": Drawing(partial(living.draw_person, dress=False, child=True), 0.56, _BRIGHT),
    "girl": Drawing(partial(living.draw_person, dress=True, child=True), 0.58, _BRIGHT),
    "bicycle": Drawing(objects.draw_bicycle, 1.5, _BRIGHT),
    "motorcycle": Drawing(objects.draw_motorcycle, 1.5, _BRIGHT),
    "car": Drawing(objects.draw_car, 1.75, _BRIGHT),
    "dog": Drawing(living.draw_dog, 1.25, ("brown", "black", "white")),
    "elephant": Drawing(living.draw_elephant, 1.3, ("grey",)),
    "cow": Drawing(living.draw_cow, 1.4, ("spotted", "brown")),
    "chair": Drawing(objects.draw_chair, 0.72, ("brown", "red", "blue", "green", "purple")),
    "couch": Drawing(objects.draw_couch, 1.7, _BRIGHT),
    "apple": Drawing(objects.draw_apple, 1.0, ("red", "green")),
    "orange": Drawing(objects.draw_orange, 1.0, ("tangerine",)),
    "banana": Drawing(objects.draw_banana, 1.35, ("yellow",)),
    "laptop": Drawing(objects.draw_laptop, 1.3, ("black", "grey")),
    "apple laptop": Drawing(objects.draw_apple_laptop, 1.3, ("silver",)),
    "umbrella": Drawing(objects.draw_umbrella, 1.0, _BRIGHT),
    "kite": Drawing(objects.draw_kite, 0.78, _BRIGHT),
    "cup": Drawing(objects.draw_cup, 1.1, ("white", "red", "blue", "green")),
}
