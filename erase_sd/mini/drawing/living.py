"""People and animals, each drawn on a layer of its own."""

from __future__ import annotations

import random

from .pen import HAIR, OUTLINE, SKIN, Colour, Pen, shade


def draw_person(p: Pen, c: Colour, rng: random.Random, dress: bool, child: bool) -> None:
    """A man in shirt and trousers, or a woman in a dress and with long hair; a child's head is larger."""
    skin, hair = rng.choice(SKIN), rng.choice(HAIR)
    head = 0.32 if child else 0.25
    radius, neck = head / 2, head - 0.02
    trousers = rng.choice(((58, 66, 92), (92, 80, 66), (70, 70, 76)))
    if dress:
        p.ellipse(0.5 - radius * 1.9, 0.0, 0.5 + radius * 1.9, head + 0.10, hair)
    for x in (0.38, 0.62):
        p.line([(x, 0.66), (x, 0.93)], 0.15, skin if dress else trousers)
        p.ellipse(x - 0.13, 0.92, x + 0.13, 0.995, OUTLINE)
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
        p.ellipse(x - 0.04, head * 0.52, x + 0.04, head * 0.52 + 0.03, OUTLINE)


def draw_dog(p: Pen, c: Colour, rng: random.Random) -> None:
    """A dog with a red collar."""
    lift = rng.uniform(0.0, 0.14)
    p.line([(0.12, 0.46), (0.03, 0.20 + lift)], 0.09, c)
    for x, tone in ((0.18, 1.0), (0.32, 0.8), (0.56, 0.8), (0.66, 1.0)):
        p.line([(x, 0.60), (x, 0.93)], 0.10, shade(c, tone))
    p.ellipse(0.06, 0.36, 0.76, 0.76, c)
    p.ellipse(0.56, 0.08, 0.92, 0.50, c)
    p.ellipse(0.76, 0.24, 0.99, 0.46, shade(c, 1.25))
    p.ellipse(0.54, 0.08, 0.68, 0.44, shade(c, 0.6))
    p.disc(0.96, 0.31, 0.05, OUTLINE)
    p.disc(0.78, 0.23, 0.035, OUTLINE)
    p.line([(0.60, 0.46), (0.72, 0.52)], 0.07, (216, 50, 60))


def draw_cow(p: Pen, c: Colour, rng: random.Random) -> None:
    """A cow with horns."""
    spot = (58, 48, 46) if min(c) > 200 else shade(c, 0.6)
    for x, tone in ((0.16, 1.0), (0.26, 0.82), (0.58, 0.82), (0.68, 1.0)):
        p.rect(x - 0.04, 0.60, x + 0.04, 0.95, shade(c, tone))
        p.rect(x - 0.04, 0.90, x + 0.04, 0.98, OUTLINE)
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
    p.disc(0.82, 0.24, 0.035, OUTLINE)


def draw_elephant(p: Pen, c: Colour, rng: random.Random) -> None:
    """An elephant with trunk and tusk."""
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
    p.disc(0.80, 0.22, 0.035, OUTLINE)
