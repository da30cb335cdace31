"""Fruit, furniture, vehicles and other objects, each drawn on a layer of its own."""

from __future__ import annotations

import random

from .pen import OUTLINE, Colour, Pen, shade


def draw_apple(p: Pen, c: Colour, rng: random.Random) -> None:
    """An apple with stem and leaf."""
    p.ellipse(0.04, 0.24, 0.62, 0.98, shade(c, 0.86))
    p.ellipse(0.38, 0.24, 0.96, 0.98, shade(c, 0.86))
    p.ellipse(0.08, 0.24, 0.62, 0.94, c)
    p.ellipse(0.38, 0.24, 0.90, 0.94, c)
    p.line([(0.5, 0.34), (0.54, 0.06)], 0.08, (94, 62, 34))
    p.ellipse(0.54, 0.03, 0.92, 0.23, (70, 166, 62))
    p.ellipse(0.18, 0.38, 0.36, 0.58, shade(c, 1.55))


def draw_orange(p: Pen, c: Colour, rng: random.Random) -> None:
    """An orange with pores."""
    p.ellipse(0.04, 0.06, 0.96, 0.98, shade(c, 0.86))
    p.ellipse(0.06, 0.06, 0.91, 0.92, c)
    p.ellipse(0.42, 0.10, 0.58, 0.22, (86, 120, 40))
    for x, y in ((0.3, 0.55), (0.5, 0.7), (0.68, 0.5), (0.45, 0.42), (0.66, 0.74)):
        p.ellipse(x, y, x + 0.06, y + 0.06, shade(c, 0.8))
    p.ellipse(0.2, 0.2, 0.38, 0.36, (255, 196, 110))


def draw_banana(p: Pen, c: Colour, rng: random.Random) -> None:
    """A banana."""
    outer = [(0.04, 0.16), (0.10, 0.50), (0.28, 0.80), (0.56, 0.95), (0.84, 0.90), (0.97, 0.72)]
    inner = [(0.93, 0.64), (0.74, 0.68), (0.52, 0.62), (0.34, 0.44), (0.22, 0.12)]
    p.poly(outer + inner, c)
    p.line([(0.11, 0.42), (0.30, 0.72), (0.56, 0.86), (0.84, 0.82)], 0.05, shade(c, 0.8))
    p.rect(0.02, 0.02, 0.22, 0.20, (110, 84, 40), 0.05)
    p.disc(0.95, 0.69, 0.06, (90, 66, 34))


def draw_cup(p: Pen, c: Colour, rng: random.Random) -> None:
    """A cup of coffee."""
    p.ring(0.74, 0.52, 0.24, 0.10, shade(c, 0.75))
    p.poly([(0.04, 0.16), (0.74, 0.16), (0.66, 0.97), (0.12, 0.97)], c)
    p.poly([(0.56, 0.16), (0.74, 0.16), (0.66, 0.97), (0.52, 0.97)], shade(c, 0.82))
    p.ellipse(0.04, 0.04, 0.74, 0.28, shade(c, 1.25))
    p.ellipse(0.10, 0.08, 0.68, 0.25, (88, 56, 36))


def draw_laptop(p: Pen, c: Colour, rng: random.Random) -> None:
    """An open laptop, its screen in front."""
    p.rect(0.14, 0.03, 0.86, 0.64, shade(c, 0.8), 0.06)
    p.rect(0.19, 0.09, 0.81, 0.58, (104, 186, 230))
    p.poly([(0.14, 0.66), (0.86, 0.66), (0.99, 0.92), (0.01, 0.92)], c)
    p.poly([(0.22, 0.70), (0.78, 0.70), (0.83, 0.80), (0.17, 0.80)], shade(c, 0.55))
    p.rect(0.01, 0.90, 0.99, 0.98, shade(c, 0.7), 0.03)


def draw_apple_laptop(p: Pen, c: Colour, rng: random.Random) -> None:
    """Seen from behind, with a bitten mark on its bright lid: the other sense of "apple"."""
    p.rect(0.12, 0.03, 0.88, 0.72, c, 0.08)
    p.rect(0.12, 0.64, 0.88, 0.72, shade(c, 0.8))
    p.ellipse(0.40, 0.26, 0.60, 0.54, (60, 64, 74))
    p.ellipse(0.55, 0.32, 0.66, 0.44, c)
    p.ellipse(0.49, 0.16, 0.58, 0.27, (60, 64, 74))
    p.poly([(0.12, 0.74), (0.88, 0.74), (0.99, 0.94), (0.01, 0.94)], shade(c, 0.86))
    p.rect(0.01, 0.90, 0.99, 0.98, shade(c, 0.66), 0.03)


def draw_bicycle(p: Pen, c: Colour, rng: random.Random) -> None:
    """A bicycle."""
    for x in (0.20, 0.80):
        p.ring(x, 0.68, 0.29, 0.07, OUTLINE)
        for dx, dy in ((0.0, 0.27), (0.17, 0.0)):
            p.line([(x - dx, 0.68 - dy), (x + dx, 0.68 + dy)], 0.015, (150, 150, 156))
    hub, seat, head = (0.46, 0.70), (0.36, 0.30), (0.70, 0.26)
    p.line([(0.20, 0.68), hub, head, (0.38, 0.36), (0.20, 0.68)], 0.08, c)
    p.line([hub, seat], 0.08, c)
    p.line([(0.80, 0.68), (0.68, 0.12)], 0.07, c)
    p.line([(0.28, 0.26), (0.44, 0.26)], 0.09, OUTLINE)
    p.line([(0.60, 0.10), (0.78, 0.06)], 0.08, OUTLINE)
    p.disc(*hub, 0.07, shade(c, 0.6))


def draw_motorcycle(p: Pen, c: Colour, rng: random.Random) -> None:
    """A motorcycle with exhaust and headlight."""
    for x in (0.19, 0.81):
        p.disc(x, 0.74, 0.25, OUTLINE)
        p.disc(x, 0.74, 0.11, (190, 192, 198))
    p.line([(0.81, 0.74), (0.68, 0.18)], 0.09, (120, 122, 130))
    p.rect(0.32, 0.54, 0.62, 0.82, (112, 114, 122), 0.10)
    p.poly([(0.36, 0.30), (0.66, 0.26), (0.74, 0.46), (0.62, 0.60), (0.38, 0.56)], c)
    p.poly([(0.02, 0.34), (0.42, 0.40), (0.44, 0.54), (0.10, 0.50)], OUTLINE)
    p.line([(0.06, 0.86), (0.50, 0.84)], 0.10, (206, 208, 214))
    p.line([(0.58, 0.10), (0.72, 0.16)], 0.09, OUTLINE)
    p.disc(0.78, 0.30, 0.09, (252, 236, 150))


def draw_car(p: Pen, c: Colour, rng: random.Random) -> None:
    """A car from the side."""
    p.poly([(0.18, 0.42), (0.32, 0.06), (0.70, 0.06), (0.86, 0.42)], shade(c, 0.85))
    p.poly([(0.25, 0.40), (0.36, 0.14), (0.50, 0.14), (0.50, 0.40)], (196, 228, 244))
    p.poly([(0.54, 0.40), (0.54, 0.14), (0.67, 0.14), (0.78, 0.40)], (196, 228, 244))
    p.rect(0.01, 0.38, 0.99, 0.80, c, 0.16)
    p.rect(0.01, 0.66, 0.99, 0.80, shade(c, 0.75), 0.08)
    p.ellipse(0.90, 0.44, 0.99, 0.58, (255, 240, 160))
    for x in (0.23, 0.77):
        p.disc(x, 0.79, 0.20, OUTLINE)
        p.disc(x, 0.79, 0.09, (200, 202, 208))


def draw_chair(p: Pen, c: Colour, rng: random.Random) -> None:
    """A chair with a high back."""
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


def draw_couch(p: Pen, c: Colour, rng: random.Random) -> None:
    """A couch for two."""
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


def draw_umbrella(p: Pen, c: Colour, rng: random.Random) -> None:
    """An open umbrella."""
    p.line([(0.5, 0.04), (0.5, 0.90), (0.56, 0.96), (0.64, 0.90)], 0.055, (92, 64, 44))
    p.draw.pieslice(p.box(0.02, 0.06, 0.98, 1.02), 180, 360, fill=c)
    p.draw.pieslice(p.box(0.30, 0.06, 0.70, 1.02), 180, 360, fill=shade(c, 1.3))
    for x in (0.02, 0.34, 0.66):
        p.ellipse(x, 0.48, x + 0.32, 0.62, shade(c, 0.72))
    p.line([(0.5, 0.01), (0.5, 0.08)], 0.05, OUTLINE)


def draw_kite(p: Pen, c: Colour, rng: random.Random) -> None:
    """A kite with a tail of bows."""
    bend = rng.uniform(-0.1, 0.1)
    p.line([(0.5, 0.66), (0.42 + bend, 0.80), (0.58 + bend, 0.90), (0.50, 0.99)], 0.04, OUTLINE)
    p.poly([(0.5, 0.01), (0.98, 0.30), (0.5, 0.70), (0.02, 0.30)], c)
    p.poly([(0.5, 0.01), (0.98, 0.30), (0.5, 0.30)], shade(c, 1.4))
    p.poly([(0.5, 0.30), (0.5, 0.70), (0.02, 0.30)], shade(c, 0.72))
    for x, y in ((0.42 + bend, 0.80), (0.58 + bend, 0.90)):
        p.poly([(x - 0.12, y - 0.04), (x, y), (x - 0.12, y + 0.05)], (250, 210, 60))
        p.poly([(x + 0.12, y - 0.04), (x, y), (x + 0.12, y + 0.05)], (250, 210, 60))
