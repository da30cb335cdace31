"""Scenes of the miniature world: sampled from a seed, rendered at 64 px, with exact boxes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from .drawing.pen import PEN_COLOURS, Pen
from .drawing.places import PLACES
from .drawing.things import THINGS

SIZE = 64
"""Width and height of an image, pixels."""
SUPERSAMPLE = 4  # rendered this many times larger, then averaged down

CLASS_OF = {kind: kind for kind in THINGS} | {
    "man": "person",
    "woman": "person",
    "boy": "person",
    "girl": "person",
    "apple laptop": "laptop",
}
"""COCO class of each kind of thing."""
CLASSES = tuple(dict.fromkeys(CLASS_OF.values()))
"""Classes of the detector, in its order."""

# Weights of none, one, two or three things in a scene. Two and three are hard for a small U-Net, so
# they are most of what it is trained on.
_COUNT_WEIGHTS = (0.08, 0.26, 0.36, 0.30)
# Range of a thing's side (square root of its area, pixels), by the number of things in the scene.
_SIDES = {1: (25, 38), 2: (21, 27), 3: (18.5, 22)}


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    kind: str
    """A key of THINGS."""
    colour: str
    centre: tuple[float, float]
    """x and y, pixels of the image."""
    side: float
    """Square root of its area, pixels."""
    mirrored: bool
    tilt: float
    """Degrees."""

    @property
    def name(self) -> str:
        """COCO class."""
        return CLASS_OF[self.kind]

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height, pixels."""
        aspect = THINGS[self.kind].aspect ** 0.5
        return self.side * aspect, self.side / aspect


@dataclass(frozen=True)
class Scene:
    """A place and its things, from left to right; the seed determines every stroke."""

    seed: int
    place: str
    things: tuple[Thing, ...]


def sample(seed: int, kinds: tuple[str, ...] | None = None, place: str | None = None) -> Scene:
    """The scene of a seed, with the given kinds of things and place if any.

    No two things share a COCO class, so that "an apple" is unambiguous.
    """
    rng = random.Random(seed)
    place = place or rng.choice(list(PLACES))
    if kinds is None:
        count = rng.choices(range(4), _COUNT_WEIGHTS)[0]
        # People twice as often as any other class, since Flickr30K is full of them.
        names = dict.fromkeys(rng.sample((*CLASSES, "person"), count))
        kinds = tuple(_kind_of(name, rng) for name in names)
    things = _arrange([(kind, rng.choice(THINGS[kind].colours)) for kind in kinds], rng)
    return Scene(seed, place, tuple(sorted(things, key=lambda thing: thing.centre[0])))


def _kind_of(name: str, rng: random.Random) -> str:
    if name == "laptop":
        return rng.choice(("laptop", "apple laptop"))
    return rng.choice([kind for kind, of in CLASS_OF.items() if of == name])


def _arrange(kinds: list[tuple[str, str]], rng: random.Random) -> list[Thing]:
    """Positions by rejection sampling: nearly no overlap, kites in the air, the rest on the ground."""
    shrink = 1.0
    while True:
        for _ in range(60):
            places = [_position(kind, len(kinds), shrink, rng) for kind, _ in kinds]
            if all(_overlap(a, b) < 0.06 for i, a in enumerate(places) for b in places[:i]):
                return [
                    Thing(kind, colour, (p.x, p.y), p.side, p.mirrored, p.tilt)
                    for (kind, colour), p in zip(kinds, places, strict=True)
                ]
        shrink *= 0.95


class _Position(NamedTuple):
    """Where a thing may stand; hundreds are tried for a crowded scene."""

    x: float
    y: float
    width: float
    height: float
    side: float
    mirrored: bool
    tilt: float


def _position(kind: str, count: int, shrink: float, rng: random.Random) -> _Position:
    side = rng.uniform(*_SIDES[count]) * shrink
    mirrored, tilt = rng.random() < 0.5, rng.uniform(-5, 5)
    aspect = THINGS[kind].aspect ** 0.5
    width, height = side * aspect, side / aspect
    x = rng.uniform(width / 2 + 1, SIZE - 1 - width / 2)
    if kind == "kite":
        y = rng.uniform(height / 2 + 1, SIZE * 0.42)
    else:
        bottom = rng.uniform(SIZE * 0.68, SIZE - 2)
        y = max(bottom - height / 2, height / 2 + 1)
    return _Position(x, y, width, height, side, mirrored, tilt)


def _overlap(a: _Position, b: _Position) -> float:
    """Shared area as a share of the smaller one."""
    across = (a.width + b.width) / 2 - abs(a.x - b.x)
    if across <= 0:
        return 0.0
    down = max(0.0, (a.height + b.height) / 2 - abs(a.y - b.y))
    return across * down / min(a.width * a.height, b.width * b.height)


_OPAQUE = [255 * (alpha > 64) for alpha in range(256)]
"""Alpha channel to mask."""
Box = tuple[str, float, float, float, float]
"""Class and x0, y0, x1, y1, pixels."""


def render_scene(scene: Scene) -> tuple[Image.Image, list[Box]]:
    """The scene as an RGB image of 64 x 64 pixels, and the boxes of its things."""
    rng = random.Random(scene.seed ^ 0x5EED)
    size = SIZE * SUPERSAMPLE
    canvas = Image.new("RGB", (size, size))
    PLACES[scene.place](canvas, Pen(canvas), rng)
    boxes: list[Box] = []
    # Things further down stand in front.
    for thing in sorted(scene.things, key=lambda t: t.centre[1] + t.extent[1] / 2):
        layer = _layer(thing, rng)
        left = round(thing.centre[0] * SUPERSAMPLE - layer.width / 2)
        top = round(thing.centre[1] * SUPERSAMPLE - layer.height / 2)
        canvas.paste(layer, (left, top), layer)
        x0, y0, x1, y1 = layer.getchannel("A").point(_OPAQUE).getbbox()  # type: ignore[misc]
        corners = (left + x0, top + y0, left + x1, top + y1)
        clipped = [min(max(c / SUPERSAMPLE, 0.0), float(SIZE)) for c in corners]
        boxes.append((thing.name, clipped[0], clipped[1], clipped[2], clipped[3]))
    return canvas.reduce(SUPERSAMPLE), boxes


def _layer(thing: Thing, rng: random.Random) -> Image.Image:
    """The thing on a transparent layer, tilted."""
    width, height = (round(e * SUPERSAMPLE) for e in thing.extent)
    layer = Image.new("RGBA", (width, height))
    tone = rng.uniform(0.92, 1.06)
    r, g, b = (min(255, round(channel * tone)) for channel in PEN_COLOURS[thing.colour])
    THINGS[thing.kind].draw(Pen(layer, thing.mirrored), (r, g, b), rng)
    return layer.rotate(thing.tilt, Image.Resampling.BILINEAR, expand=True)
