"""The HTML and CSS of the local page; everything that a user or a model names is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ...data.images import png_of
from ...detection.detector import DetectorAnswer
from ...run.measurements import Detection
from ...scoring.rates import THRESHOLD
from ..data import SHOWN_VARIANTS

if TYPE_CHECKING:
    from PIL.Image import Image

SENTENCES = {  # whether the concept is detected in the original, and in the erased image
    (True, False): "<b>{}</b>: detected in the original, gone from the erased image.",
    (True, True): "<b>{}</b>: still detected in the erased image.",
    (False, False): "<b>{}</b>: detected in neither image.",
    (False, True): "<b>{}</b>: detected only in the erased image.",
}
PLACEHOLDER = """<div class="pair empty"><figure><h2>original</h2><div class="frame"></div></figure>
<figure><h2>erased</h2><div class="frame"></div></figure></div>"""
CSS = """
.gradio-container { max-width: 64rem !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
header h1 { font-size: 1.8rem; font-weight: 600; margin: .5rem 0 .3rem; }
header h1 b { text-decoration: line-through #e8590c .12em; }
header p { margin: 0; color: var(--body-text-color-subdued); }
#generate { align-self: end; min-height: 2.7rem; }
.pair { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.pair figure { margin: 0; }
.pair h2 { margin: 0 0 .3rem; font-size: 1rem; font-weight: 600; }
.pair figcaption { margin-top: .3rem; color: var(--body-text-color-subdued); }
.frame { position: relative; overflow: hidden; border-radius: .6rem; }
.frame img { display: block; width: 100%; }
.empty .frame { aspect-ratio: 1; border: 2px dashed var(--border-color-primary); }
.box { position: absolute; border: 2px solid #0b7285; border-radius: 3px; }
.box span { z-index: 1; position: absolute; bottom: 100%; left: -2px; padding: 0 .4em; white-space: nowrap;
  font: 600 .8rem/1.5 system-ui, sans-serif; color: #fff; background: #0b7285; }
.box.concept { border-color: #c92a2a; }
.box.concept span { background: #c92a2a; }
.box span.low { bottom: auto; top: 0; }
.box span.right { left: auto; right: -2px; }
.verdict { margin: .2rem 0 .8rem; font-size: 1.15rem; }
.message { padding: .8rem 1rem; border-left: 4px solid #e03131; overflow-wrap: anywhere; }
"""


def header_html(concepts: str) -> str:
    """The title of the page and a line of explanation."""
    return (
        f"<header><h1>Stable Diffusion without <b>{escape(concepts)}</b></h1><p>The same prompt and "
        "the same noise, once with the original text encoder and once with the erased one. Boxes show "
        "what the detector finds.</p></header>"
    )


def image_pair_html(
    prompt: str, images: Sequence[Image], answer: DetectorAnswer, targets: Mapping[str, str]
) -> str:
    """Original and erased image side by side with their boxes, and a sentence for each concept.

    `targets` maps each concept to the detector's class.
    """
    shown = [[box for box in row if box.probability >= THRESHOLD] for row in answer.detections]
    before, after = ({box.name for box in row} for row in shown)
    sentences = [
        SENTENCES[target in before, target in after].format(escape(concept))
        if target in answer.names
        else f"The detector has no class <b>{escape(target)}</b>; judge by eye."
        for concept, target in targets.items()
    ]
    figures = [
        _figure(variant, prompt, image, row, targets)
        for variant, image, row in zip(SHOWN_VARIANTS, images, shown, strict=True)
    ]
    return (
        f'<p class="verdict" role="status">{" ".join(sentences)}</p>'
        f'<div class="pair">{"".join(figures)}</div>'
    )


def _figure(
    variant: str,
    prompt: str,
    image: Image,
    detections: Sequence[Detection],
    targets: Mapping[str, str],
) -> str:
    data = base64.b64encode(png_of(image)).decode()
    words = ", ".join(f"{one.name} {one.probability:.0%}" for one in detections) or "nothing"
    boxes = [_box(one, image.size, one.name in targets.values()) for one in detections]
    return (
        f'<figure><h2>{variant}</h2><div class="frame"><img src="data:image/png;base64,{data}" '
        f'alt="{escape(f"{variant} image of: {prompt}; detected: {words}")}">{"".join(boxes)}'
        f"</div><figcaption>detected: {escape(words)}</figcaption></figure>"
    )


def _box(detection: Detection, size: tuple[int, int], is_concept: bool) -> str:
    """A box in percent of the image's `size`; its label stays inside the image."""
    left, top, right, bottom = (100 * v / size[i % 2] for i, v in enumerate(detection.box))
    label = "low" * (top < 8) + " right" * (left > 60)
    return (
        f'<div class="box{" concept" * is_concept}" aria-hidden="true" style="left:{left:.1f}%;'
        f'top:{top:.1f}%;width:{right - left:.1f}%;height:{bottom - top:.1f}%">'
        f'<span class="{label}">{escape(detection.name)} {detection.probability:.0%}</span></div>'
    )
