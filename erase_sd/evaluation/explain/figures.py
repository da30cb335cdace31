"""Figures of `explain`, drawn with matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...data.pair import ConceptSet
from ...models.tokens import Words
from ...plotting import COLOURS, INK, LINE, MUTED, render_png
from .views import Array, ModelView, PairSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SET_COLOURS: dict[ConceptSet, str] = {"forget": COLOURS[1], "retain": COLOURS[0]}
SHARE_MAP, CHANGE_MAP, HEAT_MAP = "Blues", "RdBu_r", "magma"
MAP_STYLE = {  # maps have frames and no grid
    "axes.edgecolor": LINE,
    "axes.grid": False,
    "axes.labelcolor": MUTED,
    "axes.spines.right": True,
    "axes.spines.top": True,
    "axes.titlesize": 10,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
MAP_DPI = 130
Views = tuple[ModelView, ModelView]  # original, erased


def tsne_figure(
    selection: PairSelection, views: Views, points: tuple[Sequence[Array], Sequence[Array]]
) -> bytes:
    """Two panels with shared axes, original and erased.

    `points` are each model's captions and images, (n, 2), all from one t-SNE. Neighbours in a t-SNE
    need not be similar, so each panel states the cosines too.
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, name, view, (captions, images) in zip(
            panels, ("original", "erased"), views, points, strict=True
        ):
            for concept_set, rows in reversed(selection.rows.items()):
                _pair_points(axes, captions[rows], images[rows], concept_set)
            cosines = ", ".join(
                f"{concept_set} {view.pair_similarity[rows].mean():.2f}"
                for concept_set, rows in selection.rows.items()
            )
            axes.set(title=name, xlabel=f"mean cosine of caption and image: {cosines}")
            axes.set(xticks=[], yticks=[])
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)
        figure.suptitle(
            "Held-out captions and images in one t-SNE; a line joins each caption to its image"
        )

    return render_png(draw, (10, 5.8), MAP_DPI, MAP_STYLE)


def _pair_points(axes: Axes, captions: Array, images: Array, concept_set: ConceptSet) -> None:
    """Captions, images, and a line between the two of each pair."""
    colour = SET_COLOURS[concept_set]
    lines = np.stack([captions, images]).transpose(2, 0, 1)
    axes.plot(*lines, "-", color=colour, linewidth=0.6, alpha=0.35)
    axes.scatter(
        images[:, 0], images[:, 1], s=26, marker="^", facecolor="none", edgecolor=colour,
        linewidth=0.9, label=f"{concept_set} images",
    )  # fmt: skip
    axes.scatter(
        captions[:, 0], captions[:, 1], s=20, c=colour, linewidth=0, alpha=0.8,
        label=f"{concept_set} captions",
    )  # fmt: skip


def text_attention_figure(selection: PairSelection, views: Views) -> bytes:
    """A heat map per example: the attention of `<|endoftext|>` and of the last word in the text
    tower's last layer, original and erased, and the change, in percent."""
    shares = [
        torch.stack(pair).numpy()
        for pair in zip(*(view.text_attention for view in views), strict=True)
    ]
    max_change = max(1e-6, *(float(abs(after - before).max()) for before, after in shares))
    # The first token gets the attention that has no better use, most of it in a large CLIP; its
    # share would make all others pale.
    max_share = max(float(share[..., 1:].max()) for share in shares)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(shares), 1, squeeze=False)[:, 0]
        for axes, words, share in zip(panels, selection.words, shares, strict=True):
            _text_attention_map(axes, words, share, max_share, max_change)
        figure.suptitle("Attention in the text tower's last layer, mean over heads, percent")

    longest = max(len(words.tokens) for words in selection.words)
    return render_png(draw, (2.4 + 0.55 * longest, 0.6 + 2.6 * len(shares)), MAP_DPI, MAP_STYLE)


def _text_attention_map(
    axes: Axes, words: Words, share: Array, max_share: float, max_change: float
) -> None:
    """One example: `share` is (variants, 2, tokens); the colour scales end at the two maxima."""
    shown = np.full((7, len(words.tokens)), np.nan)  # the fourth row stays empty
    shown[[0, 1]], shown[[4, 5]] = share[:, 0], share[:, 1]
    shown[4:, words.last + 1 :] = np.nan  # a word attends to none after it
    change = np.full_like(shown, np.nan)
    change[[2, 6]] = shown[[1, 5]] - shown[[0, 4]]
    axes.imshow(shown, SHARE_MAP, vmin=0, vmax=max_share, aspect="auto")
    axes.imshow(change, CHANGE_MAP, vmin=-max_change, vmax=max_change, aspect="auto")
    for (row, column), value in np.ndenumerate(np.where(np.isnan(shown), change, shown)):
        if not np.isnan(value):
            end, sign = (max_change, "+") if row in (2, 6) else (max_share, "")
            percent = round(100 * value)
            axes.text(
                column, row, f"{percent:{sign}d}" if percent else "0", ha="center", va="center",
                fontsize=8, color="white" if abs(value) > 0.6 * end else INK,
            )  # fmt: skip
    labels = []
    for token in (words.tokens[words.end], words.tokens[words.last]):
        labels += [f"{token}:  original", "erased", "change"]
    axes.set_yticks([0, 1, 2, 4, 5, 6], labels)
    axes.set_xticks(range(len(words.tokens)), words.tokens, rotation=35, ha="right")
    for k in words.mentions:
        axes.get_xticklabels()[k].set(color=SET_COLOURS["forget"], weight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def image_attention_figure(
    selection: PairSelection, views: Views, pixels: Array, both_towers: bool
) -> bytes:
    """A row per example: the image, attention rollout to [CLS], and each patch's cosine with the
    caption, original, erased, and the change.

    The rollout has two columns if `both_towers` were trained. `pixels` are the examples' images,
    (k, size, size, 3), 0-1.
    """
    rollout_views = views if both_towers else views[:1]
    towers = ("original", "erased") if both_towers else ("image tower, not trained",)
    titles = ["forget image", *(f"attention rollout to [CLS]:\n{name}" for name in towers)]
    titles += [f"cosine with the caption:\n{name}" for name in ("original", "erased", "change")]
    rollouts = torch.stack([view.image_rollout for view in rollout_views]).numpy()
    cosines = torch.stack([view.patch_similarity for view in views]).numpy()

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(pixels), len(titles), squeeze=False)
        for k, row in enumerate(panels):
            pair = selection.examples[k]
            row[0].imshow(pixels[k])
            caption = textwrap.fill(selection.pairs[pair].caption, 32)
            row[0].set_xlabel(caption, fontsize=8, color=INK)
            row[0].set(xticks=[], yticks=[])
            _heat_maps(figure, row[1:-3], pixels[k], rollouts[:, k], (0, rollouts[:, k].max()))
            span = (cosines[:, k].min(), cosines[:, k].max())
            _heat_maps(figure, row[-3:-1], pixels[k], cosines[:, k], span)
            change = cosines[1:, k] - cosines[:1, k]
            most = max(1e-6, abs(change).max())
            _heat_maps(figure, row[-1:], pixels[k], change, (-most, most), CHANGE_MAP)
            for axes, view in zip(row[-3:-1], views, strict=True):
                axes.set_xlabel(f"whole image: {view.pair_similarity[pair]:.2f}", fontsize=8)
        for axes, title in zip(panels[0], titles, strict=True):
            axes.set_title(title)

    return render_png(draw, (2.5 * len(titles), 0.5 + 2.5 * len(pixels)), MAP_DPI, MAP_STYLE)


def _heat_maps(
    figure: Figure,
    panels: Sequence[Axes],
    pixels: Array,
    maps: Array,
    limits: tuple[float, float],
    colour_map: str = HEAT_MAP,
) -> None:
    """Patch maps (panels, rows, columns) over their image in grey, with one colour bar."""
    from matplotlib.ticker import MaxNLocator

    extent = (0, 1, 1, 0)
    for axes, patches in zip(panels, maps, strict=True):
        axes.imshow(pixels.mean(-1), "gray", vmin=-0.2, vmax=1.2, extent=extent)
        heat = axes.imshow(
            patches, colour_map, vmin=limits[0], vmax=limits[1], alpha=0.65, extent=extent
        )
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(heat, ax=list(panels), fraction=0.04, pad=0.02, ticks=MaxNLocator(4))
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
