"""The index of several runs: a table, and how forgetting trades off against retention."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..files import write_text
from ..plotting import INK, LINE, MUTED
from ..run import RUNS
from ..run.differences import different_settings
from ..run.folder import STAGES
from ..run.measurements import RateComparison
from .figures import ACCENT, PAPER, inline_svg
from .page import ReportPage
from .rendering import render_template

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TradeOff:
    """Detection rates of a concept and of all other objects, in percent."""

    label: str
    original: tuple[float, float]
    erased: tuple[float, float]


@dataclass(frozen=True)
class IndexRow:
    """A concept's row in the table; its rates read `before → after`."""

    concept: str
    method: str
    concept_rate: str
    other_rate: str
    seconds: str


def write_index(pages: Sequence[ReportPage]) -> Path:
    """Writes `runs/index.html`, with links to the reports of the runs."""
    path = RUNS / "index.html"
    entries, points = [], []
    for page in pages:
        link = quote(Path(os.path.relpath(page.path, RUNS)).as_posix())
        entries.append((page, link, _index_rows(page)))
        points += _trade_offs(page)
    pareto = (
        inline_svg(lambda axes: draw_trade_offs(axes, points), "pareto", (5.0, 3.8))
        if points
        else ""
    )
    different = different_settings(
        (page.data.record.stages, page.data.scores) for page in pages if page.data.scores
    )
    page_text = render_template(
        "index.html.j2", entries=entries, points=points, pareto=pareto, different=different
    )
    write_text(path, page_text)
    return path


def _index_rows(page: ReportPage) -> list[IndexRow]:
    stages = [page.data.stage(name) for name in STAGES]
    method = str(stages[0].settings.get("method", "")) if stages[0] else ""
    seconds = sum((stage.seconds or 0) for stage in stages if stage)
    points = {point.label: point for point in _trade_offs(page)}
    rows = []
    for concept in page.data.concepts:
        concept_rate = other_rate = "not scored"
        if point := points.get(_label(page, concept.name)):
            concept_rate, other_rate = (
                f"{before:.1f} → {after:.1f}"
                for before, after in zip(point.original, point.erased, strict=True)
            )
        rows.append(IndexRow(concept.name, method, concept_rate, other_rate, f"{seconds:.0f} s"))
    return rows


def _label(page: ReportPage, concept: str) -> str:
    name = page.data.run.name
    return name if len(page.data.concepts) == 1 else f"{name}: {concept}"


def _trade_offs(page: ReportPage) -> list[TradeOff]:
    """A point for each concept whose own rate and whose rate of other objects are both known."""
    if not page.data.scores:
        return []
    points = []
    for concept in page.data.concepts:
        plain = [
            rates
            for rates in page.data.scores.rates
            if rates.concept == concept.name and rates.kind == "plain"
        ]
        own = _percentages([rates for rates in plain if rates.group == "target"])
        others = _percentages([rates for rates in plain if rates.group != "target"])
        if own and others:
            original, erased = zip(own, others, strict=True)
            points.append(TradeOff(_label(page, concept.name), original, erased))
    return points


def _percentages(groups: Sequence[RateComparison]) -> tuple[float, float] | None:
    """Detection rates before and after over all groups; None without any prompt."""
    n = sum(rates.original.n for rates in groups)
    if not n:
        return None
    before = sum(rates.original.detected for rates in groups)
    after = sum(rates.erased.detected for rates in groups)
    return 100 * before / n, 100 * after / n


def draw_trade_offs(axes: Axes, points: Sequence[TradeOff]) -> None:
    """A line from each original to its erased model; the best erased models are joined."""
    for point in points:
        axes.annotate(
            "", point.erased, point.original,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 1},
        )  # fmt: skip
        axes.plot(*point.original, "o", color=MUTED, markerfacecolor="none")
    best = best_trade_offs([point.erased for point in points])
    axes.plot(*zip(*best, strict=True), color=ACCENT, linewidth=1, zorder=2)
    for point in points:  # the best above others that lie nearly on them
        colour, height = (ACCENT, 4) if point.erased in best else (INK, 3)
        axes.plot(*point.erased, "o", color=colour, zorder=height)
    lowest = min(min(point.original[1], point.erased[1]) for point in points)
    bottom = max(0.0, lowest - 10)
    gap = 0.045 * (105 - bottom)
    lowest_label = min(_label_points(axes, points, gap))
    axes.set(
        xlim=(-3, 103), ylim=(min(bottom, lowest_label) - gap, 105),
        xlabel="concept detected, % (lower is better)",
        ylabel="other objects detected, % (higher is better)",
    )  # fmt: skip
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])


def _label_points(axes: Axes, points: Sequence[TradeOff], gap: float) -> list[float]:
    """Labels the points in a column per side, at least `gap` apart; the height of each label."""
    heights = []
    free = {"left": 105.0, "right": 105.0}
    for point in sorted(points, key=lambda p: (-p.erased[1], p.erased[0], p.label)):
        align, offset = ("left", 2) if point.erased[0] < 60 else ("right", -2)
        free[align] = min(free[align] - gap, point.erased[1])
        heights.append(free[align])
        axes.annotate(
            point.label, point.erased, (point.erased[0] + offset, free[align]), fontsize=9,
            va="center", ha=align, annotation_clip=False,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    return heights


def best_trade_offs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both, by the first number: it small, the second large."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best
