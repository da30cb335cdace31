"""Sixteen COCO classes, drawn with Pillow.

Each on a layer of its own, whose alpha gives the exact ground-truth box afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .pen import HAIR, INK, SKIN, Colour, Pen, shade


def _apple(p: Pen, c: Colour, rng: random.Random) -> None:
    p.ellipse(0.04, 0.24, 0.62, 0.98, shade(c, 0.86))
    p.ellipse(0.38, 0.24, 0.96, 0.98, shade(c, 0.86))
    p.ellipse(0.08, 0.24, 0.62, 0.94, c)
    p.ellipse(0.38, 0.24, 0.90, 0.94, c)
    p.line([(0.5, 0.34), (0.54, 0.06)], 0.08, (94, 62, 34))
    p.ellipse(0.54, 0.03, 0.92, 0.23, (70, 166, 62))
    p.ellipse(0.18, 0.38, 0.36, 0.58, shade(c, 1.55))


def _orange(p: Pen, c: Colour, rng: random.Random) -> None:
    p.ellipse(0.04, 0.06, 0.96, 0.98, shade(c, 0.86))
    p.ellipse(0.06, 0.06, 0.91, 0.92, c)
    p.ellipse(0.42, 0.10, 0.58, 0.22, (86, 120, 40))
    for x, y in ((0.3, 0.55), (0.5, 0.7), (0.68, 0.5), (0.45, 0.42), (0.66, 0.74)):
        p.ellipse(x, y, x + 0.06, y + 0.06, shade(c, 0.8))
    p.ellipse(0.2, 0.2, 0.38, 0.36, (255, 196, 110))


def _banana(p: Pen, c: Colour, rng: random.Random) -> None:
    outer = [(0.04, 0.16), (0.10, 0.50), (0.28, 0.80), (0.56, 0.95), (0.84, 0.90), (0.97, 0.72)]
    inner = [(0.93, 0.64), (0.74, 0.68), (0.52, 0.62), (0.34, 0.44), (0.22, 0.12)]
    p.poly(outer + inner, c)
    p.line([(0.11, 0.42), (0.30, 0.72), (0.56, 0.86), (0.84, 0.82)], 0.05, shade(c, 0.8))
    p.rect(0.02, 0.02, 0.22, 0.20, (110, 84, 40), 0.05)
    p.disc(0.95, 0.69, 0.06, (90, 66, 34))


def _cup(p: Pen, c: Colour, rng: random.Random) -> None:
    p.ring(0.74, 0.52, 0.24, 0.10, shade(c, 0.75))
    p.poly([(0.04, 0.16), (0.74, 0.16), (0.66, 0.97), (0.12, 0.97)], c)
    p.poly([(0.56, 0.16), (0.74, 0.16), (0.66, 0.97), (0.52, 0.97)], shade(c, 0.82))
    p.ellipse(0.04, 0.04, 0.74, 0.28, shade(c, 1.25))
    p.ellipse(0.10, 0.08, 0.68, 0.25, (88, 56, 36))


def _laptop(p: Pen, c: Colour, rng: random.Random) -> None:
    p.rect(0.14, 0.03, 0.86, 0.64, shade(c, 0.8), 0.06)
    p.rect(0.19, 0.09, 0.81, 0.58, (104, 186, 230))
    p.poly([(0.14, 0.66), (0.86, 0.66), (0.99, 0.92), (0.01, 0.92)], c)
    p.poly([(0.22, 0.70), (0.78, 0.70), (0.83, 0.80), (0.17, 0.80)], shade(c, 0.55))
    p.rect(0.01, 0.90, 0.99, 0.98, shade(c, 0.7), 0.03)


def _apple_laptop(p: Pen, c: Colour, rng: random.Random) -> None:
    """Seen from behind: a bright lid with a bitten mark, the word's other sense."""
    p.rect(0.12, 0.03, 0.88, 0.72, c, 0.08)
    p.rect(0.12, 0.64, 0.88, 0.72, shade(c, 0.8))
    p.ellipse(0.40, 0.26, 0.60, 0.54, (60, 64, 74))
    p.ellipse(0.55, 0.32, 0.66, 0.44, c)
    p.ellipse(0.49, 0.16, 0.58, 0.27, (60, 64, 74))
    p.poly([(0.12, 0.74), (0.88, 0.74), (0.99, 0.94), (0.01, 0.94)], shade(c, 0.86))
    p.rect(0.01, 0.90, 0.99, 0.98, shade(c, 0.66), 0.03)


def _bicycle(p: Pen, c: Colour, rng: random.Random) -> None:
    for x in (0.20, 0.80):
        p.ring(x, 0.68, 0.29, 0.07, INK)
        for dx, dy in ((0.0, 0.27), (0.17, 0.0)):
            p.line([(x - dx, 0.68 - dy), (x + dx, 0.68 + dy)], 0.015, (150, 150, 156))
    hub, seat, head = (0.46, 0.70), (0.36, 0.30), (0.70, 0.26)
    p.line([(0.20, 0.68), hub, head, (0.38, 0.36), (0.20, 0.68)], 0.08, c)
    p.line([hub, seat], 0.08, c)
    p.line([(0.80, 0.68), (0.68, 0.12)], 0.07, c)
    p.line([(0.28, 0.26), (0.44, 0.26)], 0.09, INK)
    p.line([(0.60, 0.10), (0.78, 0.06)], 0.08, INK)
    p.disc(*hub, 0.07, shade(c, 0.6))


def _motorcycle(p: Pen, c: Colour, rng: random.Random) -> None:
    for x in (0.19, 0.81):
        p.disc(x, 0.74, 0.25, INK)
        p.disc(x, 0.74, 0.11, (190, 192, 198))
    p.line([(0.81, 0.74), (0.68, 0.18)], 0.09, (120, 122, 130))
    p.rect(0.32, 0.54, 0.62, 0.82, (112, 114, 122), 0.10)
    p.poly([(0.36, 0.30), (0.66, 0.26), (0.74, 0.46), (0.62, 0.60), (0.38, 0.56)], c)
    p.poly([(0.02, 0.34), (0.42, 0.40), (0.44, 0.54), (0.10, 0.50)], INK)
    p.line([(0.06, 0.86), (0.50, 0.84)], 0.10, (206, 208, 214))
    p.line([(0.58, 0.10), (0.72, 0.16)], 0.09, INK)
    p.disc(0.78, 0.30, 0.09, (252, 236, 150))


def _car(p: Pen, c: Colour, rng: random.Random) -> None:
    p.poly([(0.18, 0.42), (0.32, 0.06), (0.70, 0.06), (0.86, 0.42)], shade(c, 0.85))
    p.poly([(0.25, 0.40), (0.36, 0.14), (0.50, 0.14), (0.50, 0.40)], (196, 228, 244))
    p.poly([(0.54, 0.40), (0.54, 0.14), (0.67, 0.14), (0.78, 0.40)], (196, 228, 244))
    p.rect(0.01, 0.38, 0.99, 0.80, c, 0.16)
    p.rect(0.01, 0.66, 0.99, 0.80, shade(c, 0.75), 0.08)
    p.ellipse(0.90, 0.44, 0.99, 0.58, (255, 240, 160))
    for x in (0.23, 0.77):
        p.disc(x, 0.79, 0.20, INK)
        p.disc(x, 0.79, 0.09, (200, 202, 208))


def _dog(p: Pen, c: Colour, rng: random.Random) -> None:
    lift = rng.uniform(0.0, 0.14)
    p.line([(0.12, 0.46), (0.03, 0.20 + lift)], 0.09, c)
    for x, tone in ((0.18, 1.0), (0.32, 0.8), (0.56, 0.8), (0.66, 1.0)):
        p.line([(x, 0.60), (x, 0.93)], 0.10, shade(c, tone))
    p.ellipse(0.06, 0.36, 0.76, 0.76, c)
    p.ellipse(0.56, 0.08, 0.92, 0.50, c)
    p.ellipse(0.76, 0.24, 0.99, 0.46, shade(c, 1.25))
    p.ellipse(0.54, 0.08, 0.68, 0.44, shade(c, 0.6))
    p.disc(0.96, 0.31, 0.05, INK)
    p.disc(0.78, 0.23, 0.035, INK)
    p.line([(0.60, 0.46), (0.72, 0.52)], 0.07, (216, 50, 60))


def _cow(p: Pen, c: Colour, rng: random.Random) -> None:
    spot = (58, 48, 46) if min(c) > 200 else shade(c, 0.6)
    for x, tone in ((0.16, 1.0), (0.26, 0.82), (0.58, 0.82), (0.68, 1.0)):
        p.rect(x - 0.04, 0.60, x + 0.04, 0.95, shade(c, tone))
        p.rect(x - 0.04, 0.90, x + 0.04, 0.98, INK)
    p.line([(0.08, 0.34), (0.02, 0.66)], 0.04, spot)
    p.rect(0.06, 0.24, 0.74, 0.70, c, 0.24)
    p.ellipse(0.14, 0.28, 0.36, 0.54, spot)
    p.ellipse(0.44, 0.38, 0.64, 0.66, spot)
    p.ellipse(0.50, 0.66, 0.62, 0.78, (244, 176, 180))
    p.rect(0.68, 0.10, 0.92, 0.52, c, 0.10)
    p.ellipse(0.74, 0.34, 0.99, 0.56, (244, 186, 184))
    p.line([(0.70, 0.12), (0.64, 0.02)], 0.05, (228, 216, 188))
    p.line([(0.86, 0.12), (0.92, 0.02)], 0.05, (228, 216, 188))
    p.ellipse(0.60, 0.14, 0.72, 0.26, spot)
    p.disc(0.82, 0.24, 0.035, INK)


def _elephant(p: Pen, c: Colour, rng: random.Random) -> None:
    sway = rng.uniform(-0.04, 0.04)
    for x, tone in ((0.12, 1.0), (0.26, 0.78), (0.44, 0.78), (0.56, 1.0)):
        p.rect(x - 0.06, 0.56, x + 0.07, 0.98, shade(c, tone), 0.04)
    p.line([(0.05, 0.34), (0.01, 0.60)], 0.04, shade(c, 0.7))
    p.ellipse(0.02, 0.12, 0.70, 0.78, c)
    p.ellipse(0.54, 0.04, 0.92, 0.52, c)
    p.line([(0.86, 0.34), (0.94, 0.60), (0.92 + sway, 0.84)], 0.12, c)
    p.poly([(0.78, 0.46), (0.84, 0.46), (0.88, 0.66)], (250, 246, 230))
    p.ellipse(0.46, 0.08, 0.72, 0.54, shade(c, 0.76))
    p.ellipse(0.50, 0.14, 0.68, 0.48, (214, 166, 176))
    p.disc(0.80, 0.22, 0.035, INK)


def _chair(p: Pen, c: Colour, rng: random.Random) -> None:
    dark = shade(c, 0.68)
    p.rect(0.06, 0.02, 0.20, 0.98, c)
    p.rect(0.72, 0.54, 0.86, 0.98, c)
    p.rect(0.26, 0.58, 0.36, 0.88, dark)
    p.rect(0.88, 0.56, 0.97, 0.88, dark)
    p.poly([(0.20, 0.04), (0.44, 0.10), (0.44, 0.46), (0.20, 0.50)], dark)
    p.poly([(0.22, 0.10), (0.40, 0.14), (0.40, 0.24), (0.22, 0.22)], shade(c, 1.2))
    p.poly([(0.22, 0.32), (0.40, 0.32), (0.40, 0.40), (0.22, 0.42)], shade(c, 1.2))
    p.poly([(0.06, 0.52), (0.30, 0.44), (0.97, 0.44), (0.86, 0.60), (0.06, 0.60)], c)
    p.poly([(0.12, 0.52), (0.32, 0.46), (0.92, 0.46), (0.82, 0.53)], shade(c, 1.25))


def _couch(p: Pen, c: Colour, rng: random.Random) -> None:
    dark = shade(c, 0.72)
    p.rect(0.08, 0.84, 0.16, 0.98, (94, 64, 40))
    p.rect(0.84, 0.84, 0.92, 0.98, (94, 64, 40))
    p.rect(0.08, 0.04, 0.92, 0.70, dark, 0.14)
    p.rect(0.14, 0.10, 0.49, 0.56, c, 0.10)
    p.rect(0.51, 0.10, 0.86, 0.56, c, 0.10)
    p.rect(0.12, 0.52, 0.88, 0.86, shade(c, 1.2), 0.08)
    p.rect(0.49, 0.54, 0.51, 0.72, dark)
    p.rect(0.01, 0.34, 0.17, 0.88, c, 0.10)
    p.rect(0.83, 0.34, 0.99, 0.88, c, 0.10)


def _umbrella(p: Pen, c: Colour, rng: random.Random) -> None:
    p.line([(0.5, 0.04), (0.5, 0.90), (0.56, 0.96), (0.64, 0.90)], 0.055, (92, 64, 44))
    p.draw.pieslice(p.box(0.02, 0.06, 0.98, 1.02), 180, 360, fill=c)
    p.draw.pieslice(p.box(0.30, 0.06, 0.70, 1.02), 180, 360, fill=shade(c, 1.3))
    for x in (0.02, 0.34, 0.66):
        p.ellipse(x, 0.48, x + 0.32, 0.62, shade(c, 0.72))
    p.line([(0.5, 0.01), (0.5, 0.08)], 0.05, INK)


def _kite(p: Pen, c: Colour, rng: random.Random) -> None:
    bend = rng.uniform(-0.1, 0.1)
    p.line([(0.5, 0.66), (0.42 + bend, 0.80), (0.58 + bend, 0.90), (0.50, 0.99)], 0.04, INK)
    p.poly([(0.5, 0.01), (0.98, 0.30), (0.5, 0.70), (0.02, 0.30)], c)
    p.poly([(0.5, 0.01), (0.98, 0.30), (0.5, 0.30)], shade(c, 1.4))
    p.poly([(0.5, 0.30), (0.5, 0.70), (0.02, 0.30)], shade(c, 0.72))
    for x, y in ((0.42 + bend, 0.80), (0.58 + bend, 0.90)):
        p.poly([(x - 0.12, y - 0.04), (x, y), (x - 0.12, y + 0.05)], (250, 210, 60))
        p.poly([(x + 0.12, y - 0.04), (x, y), (x + 0.12, y + 0.05)], (250, 210, 60))


def _adult_or_child(p: Pen, c: Colour, rng: random.Random, dress: bool, child: bool) -> None:
    skin, hair = rng.choice(SKIN), rng.choice(HAIR)
    head = 0.32 if child else 0.25
    radius, neck = head / 2, head - 0.02
    trousers = rng.choice(((58, 66, 92), (92, 80, 66), (70, 70, 76)))
    if dress:
        p.ellipse(0.5 - radius * 1.9, 0.0, 0.5 + radius * 1.9, head + 0.10, hair)
    for x in (0.38, 0.62):
        p.line([(x, 0.66), (x, 0.93)], 0.15, skin if dress else trousers)
        p.ellipse(x - 0.13, 0.92, x + 0.13, 0.995, INK)
    lift = rng.uniform(0.0, 0.10)
    p.line([(0.26, neck + 0.09), (0.10, 0.60 - lift)], 0.14, skin)
    p.line([(0.74, neck + 0.09), (0.90, 0.60)], 0.14, skin)
    if dress:
        p.poly([(0.32, neck), (0.68, neck), (0.92, 0.76), (0.08, 0.76)], c)
    else:
        p.rect(0.22, neck, 0.78, 0.68, c, 0.12)
    p.ellipse(0.5 - radius * 1.6, 0.02, 0.5 + radius * 1.6, head, skin)
    p.draw.pieslice(p.box(0.5 - radius * 1.7, 0.0, 0.5 + radius * 1.7, head), 180, 360, fill=hair)
    for x in (0.40, 0.60):
        p.ellipse(x - 0.04, head * 0.52, x + 0.04, head * 0.52 + 0.03, INK)


def _man(p: Pen, c: Colour, rng: random.Random) -> None:
    _adult_or_child(p, c, rng, dress=False, child=False)


def _woman(p: Pen, c: Colour, rng: random.Random) -> None:
    _adult_or_child(p, c, rng, dress=True, child=False)


def _boy(p: Pen, c: Colour, rng: random.Random) -> None:
    _adult_or_child(p, c, rng, dress=False, child=True)


def _girl(p: Pen, c: Colour, rng: random.Random) -> None:
    _adult_or_child(p, c, rng, dress=True, child=True)


Drawer = Callable[[Pen, Colour, random.Random], None]
BRIGHT = ("red", "blue", "green", "yellow", "purple")

# kind -> (drawer, width / height, colours it comes in). A kind is what a caption names; several
# kinds can share a COCO class (man, woman, boy, girl -> person), see `scenes.CLASS_OF`.
THINGS: dict[str, tuple[Drawer, float, tuple[str, ...]]] = {
    "man": (_man, 0.46, BRIGHT),
    "woman": (_woman, 0.50, BRIGHT),
    "boy": (_boy, 0.56, BRIGHT),
    "girl": (_girl, 0.58, BRIGHT),
    "bicycle": (_bicycle, 1.5, BRIGHT),
    "motorcycle": (_motorcycle, 1.5, BRIGHT),
    "car": (_car, 1.75, BRIGHT),
    "dog": (_dog, 1.25, ("brown", "black", "white")),
    "elephant": (_elephant, 1.3, ("grey",)),
    "cow": (_cow, 1.4, ("spotted", "brown")),
    "chair": (_chair, 0.72, ("brown", "red", "blue", "green", "purple")),
    "couch": (_couch, 1.7, BRIGHT),
    "apple": (_apple, 1.0, ("red", "green")),
    "orange": (_orange, 1.0, ("tangerine",)),
    "banana": (_banana, 1.35, ("yellow",)),
    "laptop": (_laptop, 1.3, ("black", "grey")),
    "apple laptop": (_apple_laptop, 1.3, ("silver",)),
    "umbrella": (_umbrella, 1.0, BRIGHT),
    "kite": (_kite, 0.78, BRIGHT),
    "cup": (_cup, 1.1, ("white", "red", "blue", "green")),
}
