"""The comparison's pictures: what they show, and that their words can be read."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from erase_sd.comparison import plots
from erase_sd.comparison.rows import Row


def rows(measure: str = "detection_rate", concepts: tuple[str, ...] = ("apple",)) -> list[Row]:
    """Twelve methods of nearly the same values, three seeds."""
    forget, retain = plots.SIDES[measure != "detection_rate"].forget[0], "retained_same"
    retain = "retain" if measure != "detection_rate" else retain
    return [
        Row(
            concept=concept, method=f"method-{m}", overrides="", seed=seed, measure=measure,
            group=group, arm=arm, value=value + (arm == "erased") * (m + seed) / 100, n=50,
        )
        for concept, m, seed in itertools.product(concepts, range(12), range(3))
        for group, arm, value in (
            (forget, "original", 0.9), (forget, "erased", 0.1),
            (retain, "original", 0.9), (retain, "erased", 0.7),
        )
    ]  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **more: object) -> None:
        drawn.append(figure)
        save(figure, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_each_method_has_its_name_and_no_name_hides_another_or_a_point(
    figures: list[Figure],
) -> None:
    assert plots.pareto(rows(), Path("pareto.png"))
    with Image.open("pareto.png") as image:
        assert image.format == "PNG" and image.size == (1080, 750)
    [axes] = figures[0].axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(
        ["original", *(f"method-{m}" for m in range(12))]
    )
    boxes = [text.get_window_extent() for text in axes.texts]
    inside = axes.get_window_extent()
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = [axes.transData.transform(c.lines[0].get_xydata()[0]) for c in axes.containers]  # type: ignore[attr-defined]
    assert len(points) == 13
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_the_axes_are_per_cent_of_forget_and_retain(figures: list[Figure]) -> None:
    plots.pareto(rows(), Path("pareto.png"))
    [axes] = figures[0].axes
    first = axes.containers[0].lines[0].get_xydata()[0]  # type: ignore[attr-defined]
    assert tuple(first) == (pytest.approx(11), pytest.approx(71))  # 10, 11, 12 and 70, 71, 72
    assert "concept detected" in axes.get_xlabel() and "other objects" in axes.get_ylabel()


def test_without_images_the_picture_is_of_retrieval(figures: list[Figure]) -> None:
    assert plots.pareto(rows("image_retrieval_r1"), Path("pareto.png"))
    assert "R@1 on forget" in figures[0].axes[0].get_xlabel()


def test_several_concepts_are_lines_over_their_number(figures: list[Figure]) -> None:
    known = rows(concepts=("apple", "apple+chair"))
    assert plots.several(known, Path("several.png"))
    assert Path("several.png").read_bytes()[:4] == b"\x89PNG"
    left, right = figures[0].axes
    for axes in (left, right):
        line = axes.containers[0].lines[0]  # type: ignore[attr-defined]
        assert list(line.get_xdata()) == [1, 2]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()][-1] == "original"


def test_what_was_not_measured_is_not_drawn() -> None:
    assert not plots.pareto([], Path("pareto.png"))
    assert not plots.several(rows(), Path("several.png"))
    assert not Path("pareto.png").exists() and not Path("several.png").exists()


def test_a_name_without_room_is_still_written() -> None:
    everywhere = Bbox([[0, 0], [100, 100]])
    placed = plots._free(Bbox([[40, 45], [60, 55]]), everywhere, [everywhere])
    assert (placed.width, placed.height) == (pytest.approx(20), pytest.approx(10))
