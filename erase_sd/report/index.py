"""Several runs on one page: a table, and how much went against how much stayed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..files import write_text
from ..run import RUNS
from ..scoring.rates import Row
from . import figures
from .page import Summary, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """A concept of a run: percent detected of the concept, and of all other objects."""

    label: str
    original: tuple[float, float]
    erased: tuple[float, float]


def write_index(summaries: Sequence[Summary]) -> Path:
    """Writes `runs/index.html`, with links to the reports of the runs."""
    path = RUNS / "index.html"
    lines, points = [], []
    for summary in summaries:
        link = quote(Path(os.path.relpath(summary.path, RUNS)).as_posix())
        lines.append((summary, link, _details(summary)))
        points += _points(summary)
    picture = (
        figures.svg(lambda axes: _pareto(axes, points), "pareto", (5.0, 3.8)) if points else ""
    )
    write_text(path, render("index.html.j2", lines=lines, points=points, pareto=picture))
    return path


def _details(summary: Summary) -> list[tuple[str, str, str, str, str]]:
    """For each concept: its name, method, both rates as `before → after`, and the time."""
    stages = [summary.data.stage(name) for name in ("unlearn", "generate", "score")]
    method = str(stages[0].get("settings", {}).get("method", ""))
    seconds = sum(stage.get("seconds", 0) for stage in stages)
    rates = {point.label: point for point in _points(summary)}
    details = []
    for concept in summary.data.concepts:
        point = rates.get(_label(summary, concept.name))
        target, others = (
            (f"{point.original[i]:.1f} → {point.erased[i]:.1f}" for i in (0, 1))
            if point
            else ("not scored", "not scored")
        )
        details.append((concept.name, method, target, others, f"{seconds:.0f} s"))
    return details


def _label(summary: Summary, concept: str) -> str:
    name = summary.data.run.name
    return name if len(summary.data.concepts) == 1 else f"{name}: {concept}"


def _points(summary: Summary) -> list[Point]:
    if not summary.data.scores:
        return []
    points = []
    for concept in summary.data.concepts:
        scores = summary.data.scores.rows
        rows = [row for row in scores if row.concept == concept.name and row.kind is None]
        arms = []
        for arm in ("original", "erased"):
            target = _percent([r for r in rows if r.arm == arm and r.group == "target"])
            others = _percent([r for r in rows if r.arm == arm and r.group != "target"])
            arms.append((target, others))
        if all(value is not None for arm in arms for value in arm):
            points.append(Point(_label(summary, concept.name), *arms))  # type: ignore[arg-type]
    return points


def _percent(rows: list[Row]) -> float | None:
    n = sum(row.n for row in rows)
    return 100 * sum(row.found for row in rows) / n if n else None


def _pareto(axes: Axes, points: list[Point]) -> None:
    """An arrow from each original to its erased model; the best erased ones are joined."""
    for point in points:
        axes.annotate(
            "", point.erased, point.original,
            arrowprops={"arrowstyle": "-", "color": figures.LINE, "linewidth": 1},
        )  # fmt: skip
        axes.plot(*point.original, "o", color=figures.MUTED, markerfacecolor="none")
    best = front([point.erased for point in points])
    axes.plot(*zip(*best, strict=True), color=figures.ACCENT, linewidth=1, zorder=2)
    for point in points:
        colour = figures.ACCENT if point.erased in best else figures.INK
        axes.plot(*point.erased, "o", color=colour, zorder=3)
    lowest = min(min(p.original[1], p.erased[1]) for p in points)
    bottom = max(0.0, lowest - 10)
    gap, free = 0.045 * (105 - bottom), {"left": 105.0, "right": 105.0}
    for point in sorted(points, key=lambda p: (-p.erased[1], p.erased[0], p.label)):
        side, by = ("left", 2) if point.erased[0] < 60 else ("right", -2)
        free[side] = min(free[side] - gap, point.erased[1])
        axes.annotate(
            point.label, point.erased, (point.erased[0] + by, free[side]), fontsize=9, va="center",
            ha=side, annotation_clip=False,
            bbox={"facecolor": figures.PAPER, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.set(
        xlim=(-3, 103), ylim=(min(bottom, *free.values()) - gap, 105),
        xlabel="concept detected, % (less is better)",
        ylabel="other objects detected, % (more is better)",
    )  # fmt: skip


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both: the first number small, the second large; by the first."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best
