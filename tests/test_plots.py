"""The comparison's figures: what they show, and that their labels can be read."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from erase_sd import plotting
from erase_sd.comparison import plots
from erase_sd.comparison.results import write_results
from erase_sd.comparison.rows import CellMeasure, Group
from erase_sd.run.records import Variant


def rows(
    measure: str = "detection_rate", concepts: tuple[tuple[str, ...], ...] = (("apple",),)
) -> list[CellMeasure]:
    """Twelve methods with nearly equal values, three seeds."""
    forget: Group = "target" if measure == "detection_rate" else "forget"
    retain: Group = "retained_same" if measure == "detection_rate" else "retain"
    values: list[tuple[Group, Variant, float]] = [
        (forget, "original", 0.9), (forget, "erased", 0.1),
        (retain, "original", 0.9), (retain, "erased", 0.7),
    ]  # fmt: skip
    return [
        CellMeasure(
            concepts=names, method=f"method-{m}", overrides="", seed=seed, measure=measure,
            group=group, variant=variant, value=value + (variant == "erased") * (m + seed) / 100, n=50,
        )
        for names, m, seed in itertools.product(concepts, range(12), range(3))
        for group, variant, value in values
    ]  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        saved.append(figure)
        save(figure, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_every_method_has_a_label_that_covers_no_point_and_no_other_label(
    figures: list[Figure],
) -> None:
    assert plots.plot_pareto(rows(), Path("pareto.png"))
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


def test_the_axes_show_forget_and_retain_in_per_cent(figures: list[Figure]) -> None:
    plots.plot_pareto(rows(), Path("pareto.png"))
    [axes] = figures[0].axes
    first = axes.containers[0].lines[0].get_xydata()[0]  # type: ignore[attr-defined]
    assert tuple(first) == (pytest.approx(11), pytest.approx(71))  # 10, 11, 12 and 70, 71, 72
    assert "concept detected" in axes.get_xlabel() and "other objects" in axes.get_ylabel()


def test_without_images_the_figure_shows_retrieval(figures: list[Figure]) -> None:
    assert plots.plot_pareto(rows("image_retrieval_r1"), Path("pareto.png"))
    assert "R@1, forget set" in figures[0].axes[0].get_xlabel()


def test_several_concepts_are_lines_over_their_number(figures: list[Figure]) -> None:
    measured = rows(concepts=(("apple",), ("apple", "chair")))
    assert plots.plot_concept_counts(measured, Path("several.png"))
    assert Path("several.png").read_bytes()[:4] == b"\x89PNG"
    left, right = figures[0].axes
    for axes in (left, right):
        line = axes.containers[0].lines[0]  # type: ignore[attr-defined]
        assert list(line.get_xdata()) == [1, 2]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()][-1] == "original"


def test_without_measurements_no_figure_is_written() -> None:
    assert not plots.plot_pareto([], Path("pareto.png"))
    assert not plots.plot_concept_counts(rows(), Path("several.png"))
    assert not Path("pareto.png").exists() and not Path("several.png").exists()


def test_a_figure_of_an_earlier_comparison_is_removed() -> None:
    for name in ("pareto.png", "several.png"):
        Path(name).write_bytes(b"of other runs")
    write_results(Path(), rows(), "erase-sd compare")
    assert Path("pareto.png").read_bytes()[:4] == b"\x89PNG" and not Path("several.png").exists()


def test_a_label_without_a_free_place_is_still_written() -> None:
    everywhere = Bbox([[0, 0], [100, 100]])
    placed = plotting._nearest_free(Bbox([[40, 45], [60, 55]]), everywhere, [everywhere])
    assert (placed.width, placed.height) == (pytest.approx(20), pytest.approx(10))


def test_a_style_overrides_the_common_one_and_leaves_matplotlibs_own_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    svg = plotting.render_svg(
        lambda figure: figure.add_subplot().set_title("$x$"), (2, 2), {"svg.fonttype": "none"}
    )
    assert "$x$" in svg and dict(mpl.rcParams) == before
