"""Matplotlib's pictures as inline SVG whose colours follow the page's scheme."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib draws with, and what the page makes of them.
INK, MUTED, LINE, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", PAPER: "--paper",
}  # fmt: skip
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "erase-sd",
    "font.size": 10,
    "text.parse_math": False,  # a run may be called $x$
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
}


def svg(draw: Callable[[Axes], None], name: str, size: tuple[float, float] = (4.6, 3.0)) -> str:
    """One picture as an `<svg>` element; `draw` fills its axes, `name` keeps its ids its own.

    `size` in inches. Every word in it is escaped by matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        with warnings.catch_warnings():
            # Only the browser needs the letters of a run's name.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1
    )


def training_curves(
    rows: list[dict[str, Any]], settings: dict[str, Any], name: str
) -> list[tuple[str, str]]:
    """(title, svg) of a `train.jsonl`: the validation measures, and the terms of the loss."""
    steps = [row["step"] for row in rows]
    measures = [key for key in rows[0] if key.startswith("validation_")]
    aside = {"step", "rolled_back", "left", "seconds_per_step", "peak_memory_mb", *measures}
    numbers = [key for key, value in rows[0].items() if isinstance(value, float)]
    terms = [key for key in numbers if key not in aside]
    limits: dict[str, Any] = {
        "forget": settings.get("forget_threshold"),
        "retain": settings.get("retain_floor"),
    }

    def measured(axes: Axes) -> None:
        for key in measures:
            kind = key.removeprefix("validation_")
            colour = ACCENT if kind == "forget" else INK
            label = {"forget": "share of the concept left", "retain": "share of the rest kept"}
            axes.plot(
                steps,
                [r.get(key, math.nan) for r in rows],
                "o-",
                color=colour,
                label=label.get(kind, kind),
            )
            if limits.get(kind) is not None:
                axes.axhline(limits[kind], color=colour, linestyle="--", linewidth=1)
        axes.set(xlabel="step", ylim=(min(0, axes.get_ylim()[0]), max(1.05, axes.get_ylim()[1])))
        axes.legend(loc="center right")

    def losses(axes: Axes) -> None:
        for key, style in zip(terms, ("-", "--", ":", "-.") * len(terms), strict=False):
            axes.plot(
                steps, [r.get(key, math.nan) for r in rows], style, marker="o", color=INK, label=key
            )
        axes.set(xlabel="step", ylim=(min(0, axes.get_ylim()[0]), None))
        axes.legend()

    drawn = (("On the validation images", measures, measured), ("Terms of the loss", terms, losses))
    return [(title, svg(draw, f"{name}{i}")) for i, (title, keys, draw) in enumerate(drawn) if keys]
