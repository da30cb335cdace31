"""The comparison's pictures: forget against retain, and what several concepts at once cost."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_bytes
from .rows import Row, Stat, by_spec, erased, originals, stat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Point = tuple[float, float]
INK, MUTED, LINE = "#1f2430", "#6b7280", "#e3e6eb"
# Okabe and Ito (2008), which the colour-blind can tell apart, without yellow; then two darker ones.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fbf", "#8b5a2b")
MARKERS = "osD^v<>"
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
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
ORIGINAL = {
    "color": INK, "marker": "*", "markersize": 12, "markeredgecolor": "white", "linestyle": ":",
    "capsize": 0, "capthick": 0, "elinewidth": 1.2,
}  # fmt: skip


@dataclass(frozen=True)
class Sides:
    """The measure that a picture's two axes show."""

    measure: str
    forget: tuple[str, ...]
    retain: tuple[str, ...]
    words: tuple[str, str]

    def of(self, rows: Sequence[Row]) -> tuple[Stat | None, Stat | None]:
        """What is left of what was to go, and of what was to stay."""
        mine = [row for row in rows if row.measure == self.measure]
        forget, retain = (
            stat(row for row in mine if row.group in groups)
            for groups in (self.forget, self.retain)
        )
        return forget, retain


SIDES = (
    Sides(
        "detection_rate", ("target",), ("retained_same", "retained_other"),
        ("the concept detected, %", "other objects detected, %"),
    ),
    Sides(
        "image_retrieval_r1", ("forget",), ("retain",),
        ("image retrieval R@1 on forget pairs, %", "image retrieval R@1 on retain pairs, %"),
    ),
)  # fmt: skip


def sides_of(rows: Sequence[Row]) -> Sides | None:
    """Detection where images were made, else retrieval; None where there is neither."""
    measures = {row.measure for row in erased(rows)}
    return next((sides for sides in SIDES if sides.measure in measures), None)


def pareto(rows: Sequence[Row], path: Path) -> bool:
    """Writes a PNG with a point a spec, from the runs of one concept; no file without a measure."""
    rows = [row for row in rows if row.size == 1] or list(rows)
    sides = sides_of(rows)
    if not sides:
        return False
    found = {name: sides.of(erased(part)) for name, part in by_spec(rows).items()}
    looks = {name: _look(i) for i, name in enumerate(found)} | {"original": ORIGINAL}
    found["original"] = sides.of(originals(rows))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        boxes = {}
        for name, (x, y) in found.items():
            if x and y:
                x_bar, y_bar = 100 * (x.spread or 0), 100 * (y.spread or 0)
                axes.errorbar(100 * x.mean, 100 * y.mean, xerr=x_bar, yerr=y_bar, **looks[name])
                boxes[name] = ((100 * x.mean, 100 * y.mean), (x_bar, y_bar))
        axes.set(xlabel=f"{sides.words[0]} (less is better)", ylabel=sides.words[1])
        axes.margins(0.08)
        if "original" in boxes:
            axes.axhline(boxes["original"][0][1], color=INK, linewidth=0.8, linestyle=":")
        _name(axes, boxes)

    _picture(draw, (7.2, 5.0), path)
    return True


def several(rows: Sequence[Row], path: Path) -> bool:
    """Writes a PNG with a line a spec over the number of concepts in one run, for the specs that
    have runs of several numbers; no file where there is none, or no measure."""
    sides = sides_of(rows)
    lines = {name: part for name, part in by_spec(rows).items() if len(_sizes(part)) > 1}
    if not sides or not lines:
        return False
    looks = {name: _look(i) for i, name in enumerate(lines)} | {"original": ORIGINAL}
    lines = {name: erased(part) for name, part in lines.items()} | {"original": originals(rows)}

    def draw(figure: Figure) -> None:
        both = figure.subplots(1, 2)
        for side, axes in enumerate(both):
            for name, part in lines.items():
                stats = [
                    (size, sides.of([row for row in part if row.size == size])[side])
                    for size in _sizes(part)
                ]
                known = [(size, value) for size, value in stats if value]
                axes.errorbar(
                    [size for size, _ in known],
                    [100 * value.mean for _, value in known],
                    yerr=[100 * (value.spread or 0) for _, value in known],
                    label=name, **looks[name],
                )  # fmt: skip
            axes.set(xlabel="concepts erased in one run", ylabel=sides.words[side], ylim=(-3, 103))
            axes.set_xticks(_sizes(rows))
        figure.legend(*both[0].get_legend_handles_labels(), loc="outside right center")

    _picture(draw, (9.0, 3.6), path)
    return True


def _sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({row.size for row in rows})


def _look(number: int) -> dict[str, Any]:
    """How the spec of that number is drawn; its bars are the standard deviation over seeds."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return ORIGINAL | {"color": colour, "marker": marker, "markersize": 7, "linestyle": "-"}


def _name(axes: Axes, boxes: dict[str, tuple[Point, Point]]) -> None:
    """Writes each name near its point; `boxes` has the points, and how far their bars reach."""
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # now it is known where in the picture the points lie
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    inside, place = axes.get_window_extent(), axes.transData.transform
    taken = []
    for (x, y), (x_bar, y_bar) in boxes.values():
        taken.append(Bbox([place((x - x_bar, y - y_bar)), place((x + x_bar, y + y_bar))]).padded(8))
    if "original" in boxes:  # its line goes all across
        height = taken[-1].y0 + taken[-1].height / 2
        taken.append(Bbox.from_bounds(inside.x0, height - 2, inside.width, 4))
    for name, (point, _) in boxes.items():
        text = axes.text(*point, name, fontsize=9, ha="center", va="center", in_layout=False)
        box = _free(text.get_window_extent().padded(2), inside, taken)
        taken.append(box)
        (x, y), back = place(point), axes.transData.inverted().transform
        text.set_position(tuple(back(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))))
        near = back((min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)))
        axes.plot(*zip(point, near, strict=True), color=MUTED, linewidth=0.5, zorder=1)


def _free(box: Bbox, inside: Bbox, taken: Sequence[Bbox]) -> Bbox:
    """The box moved to where it hides nothing, as near as there is room; all in pixels."""
    moved = box
    for far, turn in itertools.product(range(14, 260, 8), range(24)):
        along, up = math.cos(math.tau * turn / 24), math.sin(math.tau * turn / 24)
        sideways = (far + box.width / 2) * along if abs(along) > 0.1 else 0.0
        moved = box.translated(sideways, (far + box.height / 2) * up)
        whole = inside.x0 < moved.x0 and moved.x1 < inside.x1
        whole = whole and inside.y0 < moved.y0 and moved.y1 < inside.y1
        if whole and not moved.count_overlaps(taken):
            break
    return moved


def _picture(draw: Callable[[Figure], None], size: tuple[float, float], path: Path) -> None:
    """Writes what `draw` puts into a figure as a PNG, in our style; `size` in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    write_bytes(path, file.getvalue())
