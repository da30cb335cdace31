"""The six places that scenes are set in."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from .pen import Colour, Pen, shade


def _gradient(size: int, top: Colour, bottom: Colour, height: float) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((size, max(1, round(size * height))))
    return Image.composite(
        Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp
    )


def _ground(canvas: Image.Image, horizon: float, near: Colour, far: Colour) -> None:
    size = canvas.width
    canvas.paste(_gradient(size, far, near, 1 - horizon), (0, round(size * horizon)))


def _tree(p: Pen, x: float, base: float, height: float, crown: Colour) -> None:
    p.rect(x - 0.012, base - height * 0.5, x + 0.012, base, (128, 104, 84))
    p.ellipse(
        x - height * 0.34, base - height, x + height * 0.34, base - height * 0.28, shade(crown, 0.9)
    )
    p.ellipse(x - height * 0.26, base - height, x + height * 0.22, base - height * 0.4, crown)


def _cloud(p: Pen, x: float, y: float, width: float) -> None:
    for dx, dy, r in ((0, 0, 0.5), (-0.4, 0.1, 0.34), (0.4, 0.1, 0.36)):
        r *= width
        p.ellipse(x + dx * width - r, y + dy * width - r * 0.6, x + dx * width + r, y + r * 0.6,
                  (250, 252, 255))  # fmt: skip


def _kitchen(canvas: Image.Image, p: Pen, rng: random.Random) -> None:
    wall = rng.choice(((250, 240, 214), (240, 244, 226)))
    canvas.paste(shade(wall, rng.uniform(0.97, 1.01)), (0, 0, canvas.width, canvas.height))
    _ground(canvas, 0.60, (222, 204, 182), (206, 188, 166))
    for i in range(1, 6):
        p.line([(i / 6, 0.60), (i / 6 + (i / 6 - 0.5) * 0.5, 1.0)], 0.006, (196, 178, 158))
    p.line([(0, 0.76), (1, 0.76)], 0.006, (196, 178, 158))
    p.rect(0, 0.40, 1, 0.60, (176, 200, 200))
    p.rect(0, 0.37, 1, 0.42, (236, 236, 232))
    for i in range(5):
        p.rect(i / 5 + 0.02, 0.45, i / 5 + 0.18, 0.58, (190, 212, 212), 0.01)
    x = rng.uniform(0.08, 0.62)
    p.rect(x, 0.07, x + 0.28, 0.29, (252, 252, 250))
    p.rect(x + 0.02, 0.09, x + 0.26, 0.27, (190, 224, 244))
    p.rect(x + 0.13, 0.07, x + 0.15, 0.29, (252, 252, 250))


def _living_room(canvas: Image.Image, p: Pen, rng: random.Random) -> None:
    wall = rng.choice(((226, 208, 226), (214, 212, 234)))
    canvas.paste(shade(wall, rng.uniform(0.97, 1.02)), (0, 0, canvas.width, canvas.height))
    _ground(canvas, 0.60, (190, 156, 124), (172, 138, 108))
    p.rect(0, 0.575, 1, 0.61, (246, 240, 240))
    x = rng.uniform(0.10, 0.64)
    p.rect(x, 0.08, x + 0.24, 0.30, (168, 136, 96))
    p.rect(x + 0.025, 0.105, x + 0.215, 0.275, (238, 232, 214))
    p.poly([(x + 0.03, 0.27), (x + 0.12, 0.15), (x + 0.21, 0.27)], (150, 178, 160))
    p.ellipse(0.16, 0.78, 0.84, 0.97, (216, 192, 176))
    p.ellipse(0.22, 0.80, 0.78, 0.95, (228, 208, 194))


def _sky(canvas: Image.Image, p: Pen, rng: random.Random, top: Colour, low: Colour) -> None:
    canvas.paste(_gradient(canvas.width, top, low, 0.62), (0, 0))
    for _ in range(rng.randint(0, 2)):
        _cloud(p, rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.24), rng.uniform(0.10, 0.18))


def _park(canvas: Image.Image, p: Pen, rng: random.Random) -> None:
    _sky(canvas, p, rng, (150, 208, 246), (222, 240, 250))
    _ground(canvas, 0.56, (146, 200, 112), (170, 214, 136))
    for x in (rng.uniform(0.05, 0.3), rng.uniform(0.7, 0.95)):
        _tree(p, x, 0.58, rng.uniform(0.30, 0.42), (126, 182, 116))
    p.poly([(0.40, 0.56), (0.48, 0.56), (0.76, 1.0), (0.34, 1.0)], (226, 212, 178))


def _street(canvas: Image.Image, p: Pen, rng: random.Random) -> None:
    _sky(canvas, p, rng, (190, 212, 230), (228, 234, 238))
    x = -rng.uniform(0.0, 0.15)
    while x < 1:
        width, height = rng.uniform(0.20, 0.28), rng.uniform(0.26, 0.46)
        tone = rng.choice(((214, 188, 172), (198, 194, 188), (206, 200, 176)))
        p.rect(x, 0.56 - height, x + width, 0.58, tone)
        for row in range(int(height / 0.12)):
            for column in range(2):
                wx, wy = x + width * (0.18 + 0.42 * column), 0.60 - height + row * 0.11
                p.rect(wx, wy, wx + width * 0.22, wy + 0.05, (240, 236, 206))
        x += width
    p.rect(0, 0.56, 1, 0.63, (216, 214, 210))
    _ground(canvas, 0.62, (150, 152, 160), (164, 166, 172))
    for i in range(4):
        p.rect(i / 3.6 + 0.02, 0.80, i / 3.6 + 0.16, 0.825, (240, 238, 226))


def _beach(canvas: Image.Image, p: Pen, rng: random.Random) -> None:
    _sky(canvas, p, rng, (130, 204, 244), (206, 236, 248))
    x = rng.uniform(0.12, 0.88)
    p.ellipse(x - 0.07, 0.06, x + 0.07, 0.20, (255, 240, 168))
    p.rect(0, 0.40, 1, 0.60, (92, 176, 208))
    p.rect(0, 0.40, 1, 0.44, (76, 158, 196))
    for _ in range(3):
        wx = rng.uniform(0, 0.8)
        wy = rng.uniform(0.46, 0.54)
        p.rect(wx, wy, wx + 0.16, wy + 0.012, (176, 222, 236))
    _ground(canvas, 0.58, (246, 226, 176), (238, 214, 160))
    p.rect(0, 0.57, 1, 0.595, (244, 250, 250))


def _snow(canvas: Image.Image, p: Pen, rng: random.Random) -> None:
    _sky(canvas, p, rng, (176, 194, 220), (226, 232, 242))
    x = rng.uniform(0.2, 0.7)
    p.poly([(x - 0.4, 0.60), (x, 0.20), (x + 0.4, 0.60)], (166, 178, 202))
    p.poly([(x - 0.11, 0.31), (x, 0.20), (x + 0.11, 0.31), (x, 0.36)], (250, 252, 255))
    _ground(canvas, 0.56, (250, 251, 254), (228, 234, 244))
    for tx in (rng.uniform(0.04, 0.3), rng.uniform(0.7, 0.96)):
        for lift, half in ((0.0, 0.10), (0.09, 0.075), (0.18, 0.05)):
            p.poly([(tx - half, 0.60 - lift), (tx, 0.46 - lift), (tx + half, 0.60 - lift)],
                   (112, 152, 140))  # fmt: skip


PLACES: dict[str, Callable[[Image.Image, Pen, random.Random], None]] = {
    "kitchen": _kitchen,
    "living room": _living_room,
    "park": _park,
    "street": _street,
    "beach": _beach,
    "snow": _snow,
}
