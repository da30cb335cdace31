"""The comparison's figures: forget against retain, and the cost of erasing several concepts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_bytes
from ..plotting import COLOURS, INK, place_labels, render_png
from .rows import (
    CellMeasure,
    Group,
    SeedMean,
    by_spec,
    erased_rows,
    mean_over_seeds,
    original_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^v<>"
ORIGINAL_LOOK: dict[str, Any] = {
    "color": INK, "marker": "*", "markersize": 12, "markeredgecolor": "white", "linestyle": ":",
    "capsize": 0, "capthick": 0, "elinewidth": 1.2,
}  # fmt: skip


@dataclass(frozen=True)
class ForgetRetain:
    """The measure that the two axes of a figure show, on forget and on retain groups."""

    measure: str
    forget: tuple[Group, ...]
    retain: tuple[Group, ...]
    labels: tuple[str, str]

    def means(self, rows: Sequence[CellMeasure]) -> tuple[SeedMean | None, SeedMean | None]:
        """On the forget groups, on the retain groups."""
        own = [row for row in rows if row.measure == self.measure]
        forget, retain = (
            mean_over_seeds(row for row in own if row.group in groups)
            for groups in (self.forget, self.retain)
        )
        return forget, retain


FORGET_RETAIN = (
    ForgetRetain(
        "detection_rate", ("target",), ("retained_same", "retained_other"),
        ("concept detected, %", "other objects detected, %"),
    ),
    ForgetRetain(
        "image_retrieval_r1", ("forget",), ("retain",),
        ("image retrieval R@1, forget set, %", "image retrieval R@1, retain set, %"),
    ),
    ForgetRetain(
        "zero_shot_prediction", ("forget",), ("retain",),
        ("zero-shot prediction, forget set, %", "zero-shot prediction, retain set, %"),
    ),
)  # fmt: skip


def measured_axes(rows: Sequence[CellMeasure]) -> ForgetRetain | None:
    """Detection if images were generated, else retrieval, or prediction if the data has classes instead
    of captions; None if none was measured."""
    measures = {row.measure for row in erased_rows(rows)}
    return next((axes for axes in FORGET_RETAIN if axes.measure in measures), None)


def plot_pareto(rows: Sequence[CellMeasure], path: Path) -> bool:
    """Writes a PNG with one point per spec, over runs of single concepts; False without a measure."""
    rows = [row for row in rows if len(row.concepts) == 1] or list(rows)
    measured = measured_axes(rows)
    if not measured:
        return False
    points = {name: measured.means(erased_rows(own)) for name, own in by_spec(rows).items()}
    looks = {name: _look(i) for i, name in enumerate(points)} | {"original": ORIGINAL_LOOK}
    points["original"] = measured.means(original_rows(rows))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        boxes = {}
        for name, (x, y) in points.items():
            if x and y:
                spreads = 100 * (x.spread or 0), 100 * (y.spread or 0)
                boxes[name] = ((100 * x.mean, 100 * y.mean), spreads)
                axes.errorbar(*boxes[name][0], xerr=spreads[0], yerr=spreads[1], **looks[name])
        axes.set(xlabel=f"{measured.labels[0]} (lower is better)", ylabel=measured.labels[1])
        axes.margins(0.08)
        originals = [boxes["original"][0][1]] if "original" in boxes else []
        for height in originals:
            axes.axhline(height, color=INK, linewidth=0.8, linestyle=":")
        place_labels(axes, boxes, originals)

    write_bytes(path, render_png(draw, (7.2, 5.0)))
    return True


def plot_concept_counts(rows: Sequence[CellMeasure], path: Path) -> bool:
    """Writes a PNG with one line per spec over the number of concepts erased in one run.

    False, and no file, without a measure or a spec that has runs of several numbers.
    """
    measured = measured_axes(rows)
    specs = {name: own for name, own in by_spec(rows).items() if len(_counts(own)) > 1}
    if not measured or not specs:
        return False
    looks = {name: _look(i) for i, name in enumerate(specs)} | {"original": ORIGINAL_LOOK}
    lines = {name: erased_rows(own) for name, own in specs.items()}
    lines["original"] = original_rows(rows)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        for i, axes in enumerate(panels):
            for name, own in lines.items():
                of_count = {n: [r for r in own if len(r.concepts) == n] for n in _counts(own)}
                means = {n: measured.means(rows)[i] for n, rows in of_count.items()}
                _plot_line(axes, means, name, looks[name])
            axes.set(xlabel="concepts erased in one run", ylabel=measured.labels[i], ylim=(-3, 103))
            axes.set_xticks(_counts(rows))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")

    write_bytes(path, render_png(draw, (9.0, 3.6)))
    return True


def _plot_line(
    axes: Axes, means: dict[int, SeedMean | None], label: str, look: dict[str, Any]
) -> None:
    known = {count: mean for count, mean in means.items() if mean}
    values = [100 * mean.mean for mean in known.values()]
    spreads = [100 * (mean.spread or 0) for mean in known.values()]
    axes.errorbar(list(known), values, yerr=spreads, label=label, **look)


def _counts(rows: Sequence[CellMeasure]) -> list[int]:
    return sorted({len(row.concepts) for row in rows})


def _look(number: int) -> dict[str, Any]:
    """Colour and marker of a spec; its error bars are the standard deviation over seeds."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return ORIGINAL_LOOK | {"color": colour, "marker": marker, "markersize": 7, "linestyle": "-"}
