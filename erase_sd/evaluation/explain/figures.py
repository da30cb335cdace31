"""The pictures of `explain`, by matplotlib, whose global state stays as it was."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .attention import Words
    from .stage import Pairs, Seen

Array = NDArray[np.float32]

INK, MUTED, PALE = "#1f2430", "#6b7280", "#c9ced6"
COLOURS = {"forget": "#d55e00", "retain": "#0072b2"}  # Okabe and Ito's, as in plots.py
SHARE, CHANGE, HEAT = "Blues", "RdBu_r", "magma"
STYLE: Any = {
    "font.size": 10,
    "text.parse_math": False,  # a caption may hold a $
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
DPI = 130


def tsne(
    pairs: Pairs, arms: tuple[Seen, Seen], places: tuple[Sequence[Array], Sequence[Array]]
) -> bytes:
    """A PNG of two panels, original and erased, with the same axes. `places` are those of each arm's
    captions and images, all from one t-SNE; what is near in it need not be alike, so that below each
    panel stand the cosines themselves."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, name, arm, (captions, images) in zip(
            panels, ("original", "erased"), arms, places, strict=True
        ):
            for side, rows in reversed(pairs.sides.items()):
                colour = COLOURS[side]
                axes.plot(
                    *np.stack([captions[rows], images[rows]]).transpose(2, 0, 1), "-",
                    color=colour, linewidth=0.6, alpha=0.35,
                )  # fmt: skip
                axes.scatter(
                    *images[rows].T, 26, marker="^", facecolor="none", edgecolor=colour,
                    linewidth=0.9, label=f"{side} images",
                )  # fmt: skip
                axes.scatter(
                    *captions[rows].T, 20, colour, linewidth=0, alpha=0.8,
                    label=f"{side} captions",
                )  # fmt: skip
            fit = (f"{side} {arm.fit[rows].mean():.2f}" for side, rows in pairs.sides.items())
            axes.set(title=name, xlabel=f"mean cosine of caption and image: {', '.join(fit)}")
            axes.set(xticks=[], yticks=[])
        labelled = panels[0].get_legend_handles_labels()
        figure.legend(*labelled, loc="outside lower center", ncols=4)
        figure.suptitle(
            "Held-out captions and images in one t-SNE; a line joins each caption to its image"
        )

    return _png(draw, (10, 5.8))


def looks(pairs: Pairs, arms: tuple[Seen, Seen]) -> bytes:
    """A PNG of a heat map an example: what `<|endoftext|>` and the last word look at, in the text
    tower's last layer, by the original and by the erased model, and the change, in percent."""
    shares = [torch.stack(pair).numpy() for pair in zip(*(arm.looks for arm in arms), strict=True)]
    change = max(1e-6, *(float(abs(b - a).max()) for a, b in shares))
    # The first token takes what is left over, most of it in a large CLIP: it would pale the others.
    most = max(float(share[..., 1:].max()) for share in shares)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(shares), 1, squeeze=False)[:, 0]
        for place, words, share in zip(axes, pairs.words, shares, strict=True):
            _look(place, words, share, most, change)
        figure.suptitle(
            "Where the text tower looks: attention of its last layer, mean over heads, percent"
        )

    longest = max(len(words.tokens) for words in pairs.words)
    return _png(draw, (2.4 + 0.55 * longest, 0.6 + 2.6 * len(shares)))


def _look(axes: Axes, words: Words, share: Array, most: float, change: float) -> None:
    """One example: `share` is (arms, 2, tokens); colours end at `most` and at `change`."""
    drawn = np.full((7, len(words.tokens)), np.nan)  # the fourth row stays empty
    drawn[[0, 1]], drawn[[4, 5]] = share[:, 0], share[:, 1]
    drawn[4:, words.last + 1 :] = np.nan  # the last word cannot look ahead
    changed = np.full_like(drawn, np.nan)
    changed[[2, 6]] = drawn[[1, 5]] - drawn[[0, 4]]
    axes.imshow(drawn, SHARE, vmin=0, vmax=most, aspect="auto")
    axes.imshow(changed, CHANGE, vmin=-change, vmax=change, aspect="auto")
    for (row, column), value in np.ndenumerate(np.where(np.isnan(drawn), changed, drawn)):
        if not np.isnan(value):
            end, sign = (change, "+") if row in (2, 6) else (most, "")
            percent = round(100 * value)
            axes.text(
                column, row, f"{percent:{sign}d}" if percent else "0", ha="center", va="center",
                fontsize=8, color="white" if abs(value) > 0.6 * end else INK,
            )  # fmt: skip
    arms = ("original", "erased", "change")
    names = (words.tokens[words.end], words.tokens[words.last])
    rows = [f"{name}:  {arms[0]}" if k == 0 else arms[k] for name in names for k in range(3)]
    axes.set_yticks([0, 1, 2, 4, 5, 6], rows)
    axes.set_xticks(range(len(words.tokens)), words.tokens, rotation=35, ha="right")
    for k in words.mentions:
        axes.get_xticklabels()[k].set(color=COLOURS["forget"], weight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def images(pairs: Pairs, arms: tuple[Seen, Seen], pixels: Array, both: bool) -> bytes:
    """A PNG with a row an example: the image, what of each patch reaches [CLS] (attention rollout;
    before and after, where `both` towers were trained), and each patch's cosine with the caption
    before and after, and its change. `pixels` (k, size, size, 3), 0-1."""
    seen = arms if both else arms[:1]
    tower = ("original", "erased") if both else ("the image tower, not trained",)
    titles = ["a forget image", *(f"attention rollout to [CLS]:\n{name}" for name in tower)]
    titles += [f"cosine with the caption:\n{name}" for name in ("original", "erased", "change")]
    rollouts = torch.stack([arm.rollout for arm in seen]).numpy()
    fits = torch.stack([arm.similarity for arm in arms]).numpy()
    moved = fits[1:] - fits[:1]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(pixels), len(titles), squeeze=False)
        for k, row in enumerate(axes):
            row[0].imshow(pixels[k])
            caption = textwrap.fill(pairs.captions[pairs.examples[k]], 32)
            row[0].set_xlabel(caption, fontsize=8, color=INK)
            row[0].set(xticks=[], yticks=[])
            far = max(1e-6, abs(moved[:, k]).max())
            _over(figure, row[1:-3], pixels[k], rollouts[:, k], HEAT, (0, rollouts[:, k].max()))
            _over(
                figure,
                row[-3:-1],
                pixels[k],
                fits[:, k],
                HEAT,
                (fits[:, k].min(), fits[:, k].max()),
            )
            _over(figure, row[-1:], pixels[k], moved[:, k], CHANGE, (-far, far))
            for place, arm in zip(row[-3:-1], arms, strict=True):
                fit = arm.fit[pairs.examples[k]]
                place.set_xlabel(f"the whole image: {fit:.2f}", fontsize=8)
        for place, title in zip(axes[0], titles, strict=True):
            place.set_title(title)

    return _png(draw, (2.5 * len(titles), 0.5 + 2.5 * len(pixels)))


def _over(
    figure: Figure,
    places: Sequence[Axes],
    pixels: Array,
    maps: Array,
    colours: str,
    ends: tuple[float, float],
) -> None:
    """Patch maps, (arms, rows, columns), over their image in grey, with one bar of colours."""
    from matplotlib.ticker import MaxNLocator

    frame = (0, 1, 1, 0)
    for axes, patches in zip(places, maps, strict=True):
        axes.imshow(pixels.mean(-1), "gray", vmin=-0.2, vmax=1.2, extent=frame)
        heat = axes.imshow(patches, colours, vmin=ends[0], vmax=ends[1], alpha=0.65, extent=frame)
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(heat, ax=list(places), fraction=0.04, pad=0.02, ticks=MaxNLocator(4))
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)


def _png(draw: Any, size: tuple[float, float]) -> bytes:
    """What `draw` makes of a figure, as a PNG; `size` in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained", dpi=DPI)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()
