"""Colours of the miniature world, and a pen for drawing its things and places.

All coordinates are those of a unit box, from (0, 0) top left to (1, 1) bottom right.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
XY = tuple[float, float]

PEN_COLOURS: dict[str, Colour] = {
    "red": (214, 45, 50),
    "blue": (48, 96, 205),
    "green": (52, 150, 72),
    "yellow": (242, 200, 40),
    "purple": (134, 70, 176),
    "black": (46, 46, 54),
    "white": (243, 243, 240),
    "brown": (142, 92, 54),
    "grey": (140, 146, 156),
    "silver": (186, 192, 200),
    "spotted": (244, 240, 234),
    "tangerine": (246, 140, 28),
}
SKIN: tuple[Colour, ...] = ((246, 208, 176), (224, 172, 128), (166, 112, 76), (110, 72, 50))
HAIR: tuple[Colour, ...] = ((60, 40, 30), (30, 28, 32), (196, 150, 70), (150, 80, 40))
OUTLINE: Colour = (40, 38, 46)


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter (factor > 1) colour, clipped to 0-255."""
    r, g, b = (max(0, min(255, round(channel * factor))) for channel in colour)
    return r, g, b


class Pen:
    """Draws on a layer in unit coordinates, mirrored left to right on request."""

    def __init__(self, layer: Image.Image, mirrored: bool = False) -> None:
        self.draw = ImageDraw.Draw(layer)
        self.width, self.height = layer.size
        self.mirrored = mirrored

    def at(self, x: float, y: float) -> XY:
        return ((1 - x) if self.mirrored else x) * (self.width - 1), y * (self.height - 1)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (ax, ay), (bx, by) = self.at(x0, y0), self.at(x1, y1)
        return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)

    def stroke(self, width: float) -> int:
        return max(1, round(width * min(self.width, self.height)))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.draw.ellipse(self.box(x0, y0, x1, y1), fill=fill)

    def ring(self, cx: float, cy: float, radius: float, width: float, fill: Colour) -> None:
        """A circle; the radius is a share of the layer's height, so that it stays round."""
        x, y = self.at(cx, cy)
        r = radius * self.height
        self.draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=self.stroke(width))

    def disc(self, cx: float, cy: float, radius: float, fill: Colour) -> None:
        """A filled circle; radius as in `ring`."""
        x, y = self.at(cx, cy)
        r = radius * self.height
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def rect(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour, radius: float = 0.0
    ) -> None:
        self.draw.rounded_rectangle(
            self.box(x0, y0, x1, y1), radius=radius * min(self.width, self.height), fill=fill
        )

    def poly(self, points: Sequence[XY], fill: Colour) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=fill)

    def line(self, points: Sequence[XY], width: float, fill: Colour) -> None:
        """A line with round ends."""
        stroke = self.stroke(width)
        path = [self.at(x, y) for x, y in points]
        self.draw.line(path, fill=fill, width=stroke, joint="curve")
        for x, y in (path[0], path[-1]):
            self.draw.ellipse(
                (x - stroke / 2, y - stroke / 2, x + stroke / 2, y + stroke / 2), fill=fill
            )
