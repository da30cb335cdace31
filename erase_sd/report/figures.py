"""Matplotlib figures as inline SVG whose colours follow the page's light or dark scheme."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import plotting
from ..plotting import INK, LINE, MUTED
from ..run.records import TrainRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT, PAPER = "#040404", "#050505"  # placeholders, like the others below
CSS_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", PAPER: "--paper",
}  # fmt: skip
PAGE_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "erase-sd",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def inline_svg(
    draw: Callable[[Axes], None], name: str, size: tuple[float, float] = (4.6, 3.0)
) -> str:
    """An `<svg>` element that `draw` fills; `name` keeps its ids apart from those of others.

    `size` in inches. Matplotlib escapes all text.
    """

    def fill(figure: Figure) -> None:
        draw(figure.add_subplot())

    text = plotting.render_svg(fill, size, PAGE_STYLE)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1
    )


def training_curves(
    rows: Sequence[TrainRecord], settings: Mapping[str, Any], name: str
) -> list[tuple[str, str]]:
    """Title and SVG of the validation measures with their thresholds, and of the loss terms."""
    steps = [row.step for row in rows]
    terms = list(dict.fromkeys(term for row in rows for term in row.terms))

    def draw_measures(axes: Axes) -> None:
        for label, values, colour, limit in (
            ("residual concept similarity", [row.residual_concept_similarity for row in rows],
             ACCENT, "forget_threshold"),
            ("retained fidelity", [row.retained_fidelity for row in rows], INK, "retain_floor"),
        ):  # fmt: skip
            axes.plot(steps, values, "o-", color=colour, label=label)
            if (height := settings.get(limit)) is not None:
                axes.axhline(height, color=colour, linestyle="--", linewidth=1,
                             label=limit.replace("_", " "))  # fmt: skip
        bottom, top = axes.get_ylim()
        axes.set(xlabel="step", ylim=(min(0, bottom), max(1.05, top)))
        axes.legend(loc="center right")

    def draw_terms(axes: Axes) -> None:
        for term, style in zip(terms, ("-", "--", ":", "-.") * len(terms), strict=False):
            values = [row.terms.get(term, math.nan) for row in rows]
            axes.plot(steps, values, style, marker="o", color=INK, label=term)
        axes.set(xlabel="step", ylim=(min(0, axes.get_ylim()[0]), None))
        axes.legend()

    charts = [("Validation images", inline_svg(draw_measures, f"{name}0"))]
    if terms:
        charts.append(("Loss terms", inline_svg(draw_terms, f"{name}1")))
    return charts
