"""One style, one palette and one rule for labels in every figure; matplotlib's global state is untouched."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

XY = tuple[float, float]

INK, MUTED, LINE = "#1f2430", "#6b7280", "#e3e6eb"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fbf", "#8b5a2b")
"""Okabe and Ito (2008), safe for colour-blind readers, without yellow; then two darker ones."""
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a caption or a run's name may contain a $
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def render_png(
    draw: Callable[[Figure], object],
    size: XY,
    dpi: int = 150,
    style: Mapping[str, Any] | None = None,
) -> bytes:
    """A PNG of the figure that `draw` fills; `size` in inches, `style` overrides entries of `STYLE`."""
    return _render(draw, size, style, format="png", dpi=dpi)


def render_svg(
    draw: Callable[[Figure], object], size: XY, style: Mapping[str, Any] | None = None
) -> str:
    """An SVG of the figure that `draw` fills, transparent and without a date."""
    metadata = {"Date": None}
    return _render(draw, size, style, format="svg", transparent=True, metadata=metadata).decode()


def _render(
    draw: Callable[[Figure], object],
    size: XY,
    style: Mapping[str, Any] | None,
    dpi: int | None = None,
    **output: Any,
) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | dict(style or {})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, **output)
    return file.getvalue()


def place_labels(
    axes: Axes, boxes: Mapping[str, tuple[XY, XY]], lines: Sequence[float] = ()
) -> None:
    """Writes each label near its point, without covering any other point, error bar or label.

    `boxes` maps a label to its point and to the half-lengths of its error bars; `lines` are the heights
    of horizontal lines to keep clear as well. All in data coordinates.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes the layout, so that points have pixel positions
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    inside, to_pixels = axes.get_window_extent(), axes.transData.transform
    to_data = axes.transData.inverted().transform
    taken = [
        Bbox([to_pixels((x - dx, y - dy)), to_pixels((x + dx, y + dy))]).padded(8)
        for (x, y), (dx, dy) in boxes.values()
    ]
    for line in lines:
        height = to_pixels((axes.get_xlim()[0], line))[1]
        taken.append(Bbox.from_bounds(inside.x0, height - 2, inside.width, 4))
    for label, (point, _) in boxes.items():
        text = axes.text(*point, label, fontsize=9, ha="center", va="center", in_layout=False)
        box = _nearest_free(text.get_window_extent().padded(2), inside, taken)
        taken.append(box)
        text.set_position(tuple(to_data(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))))
        x, y = to_pixels(point)
        edge = to_data((min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)))
        axes.plot(*zip(point, edge, strict=True), color=MUTED, linewidth=0.5, zorder=1)


def _nearest_free(box: Bbox, inside: Bbox, taken: Sequence[Bbox]) -> Bbox:
    """`box` moved the shortest way to where it overlaps nothing; all in pixels."""
    moved = box
    for distance, turn in itertools.product(range(14, 260, 8), range(24)):
        along, up = math.cos(math.tau * turn / 24), math.sin(math.tau * turn / 24)
        sideways = (distance + box.width / 2) * along if abs(along) > 0.1 else 0.0
        moved = box.translated(sideways, (distance + box.height / 2) * up)
        fits = inside.x0 < moved.x0 and moved.x1 < inside.x1
        fits = fits and inside.y0 < moved.y0 and moved.y1 < inside.y1
        if fits and not moved.count_overlaps(taken):
            break
    return moved
