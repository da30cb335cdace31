"""Measures the miniature world on captions, scenes and seeds that trained nothing:
`python -m erase_sd.mini.training.check`. Exit status 1 where a bar is missed."""

from __future__ import annotations

import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ... import runtime
from ...detection.detector import CONTAINED, Detector
from ...models import pipeline, presets
from ...models.text_encoder import load_clip
from ...scoring.rates import THRESHOLD, wilson
from .. import WEIGHTS
from ..captions import NAME_FREE, SYNONYMS, Wording, held_out_caption
from ..scenes import CLASS_OF, CLASSES, Scene, render, sample

CHECK_SEED = 40_000_000  # scenes from here on are for checks alone
LOOK_ALIKES = (
    ("apple", "orange"),
    ("bicycle", "motorcycle"),
    ("chair", "couch"),
    ("elephant", "cow"),
)


@dataclass(frozen=True)
class Shown:
    """A drawn caption: the classes it names, and those detected in its image."""

    named: tuple[str, ...]
    found: frozenset[str]


class Report:
    """Prints a line a measure and remembers whether all bars held."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def rate(self, title: str, found: int, n: int, least: float | None = None) -> None:
        low, high = wilson(found, n)
        self.line(title, found / n, least, f"[{low:.3f}, {high:.3f}] n={n}")

    def line(
        self,
        title: str,
        value: float,
        least: float | None = None,
        note: str = "",
        most: float | None = None,
    ) -> None:
        held = (least is None or value >= least) and (most is None or value <= most)
        bar = f">= {least}" if least is not None else f"<= {most}" if most is not None else ""
        verdict = "" if not bar else "ok" if held else "MISSED"
        if not held:
            self.missed.append(title)
        print(f"{title:<52} {value:7.3f} {bar:>8} {verdict:<6} {note}", flush=True)


def check_detector(report: Report, detector: Detector, scenes: int = 500) -> None:
    """mAP50 and false positives on fresh renders."""
    from ultralytics.utils.metrics import ap_per_class, box_iou

    hits, scores, kinds, truths = [], [], [], []
    false = dict.fromkeys(CLASSES, 0)
    absent = dict.fromkeys(CLASSES, 0)
    drawn = [render(sample(CHECK_SEED + i)) for i in range(scenes)]
    answers = detector([image for image, _ in drawn], lowest=0.001)
    for (_, boxes), found in zip(drawn, answers, strict=True):
        true = torch.tensor([box[1:] for box in boxes]).reshape(-1, 4)
        open_boxes = set(range(len(boxes)))
        for box in found:
            overlap = box_iou(torch.tensor([box["box"]]), true)[0].tolist()
            match = [i for i in open_boxes if boxes[i][0] == box["class"] and overlap[i] >= 0.5]
            best = max(match, key=lambda i: overlap[i], default=None)
            open_boxes -= {best}
            hits.append([best is not None])
            scores.append(box["probability"])
            kinds.append(CLASSES.index(box["class"]))
        truths += [CLASSES.index(box[0]) for box in boxes]
        there, seen = {box[0] for box in boxes}, _classes(found)
        for name in CLASSES:
            absent[name] += name not in there
            false[name] += name in seen and name not in there
    order = np.argsort(-np.array(scores))
    precision = ap_per_class(
        np.array(hits)[order], np.array(scores)[order], np.array(kinds)[order], np.array(truths)
    )[5]
    report.line("detector mAP50, fresh renders", float(precision[:, 0].mean()), 0.97, f"n={scenes}")
    worst = max(CLASSES, key=lambda name: false[name] / absent[name])
    report.line(
        "detector false positives, worst class", false[worst] / absent[worst], None,
        f"{worst}, n={absent[worst]}", most=0.01,
    )  # fmt: skip


def _classes(boxes: Sequence[dict[str, Any]]) -> frozenset[str]:
    return frozenset(box["class"] for box in boxes if box["probability"] >= THRESHOLD)


def check_clip(report: Report, pairs: int = 500) -> None:
    """Retrieval among held-out pairs: a caption each that no training has seen."""
    clip = load_clip(WEIGHTS / "clip")
    chosen = _take(_held_out(None, CHECK_SEED + 10_000, "direct"), pairs)
    captions, images = [c for _, c in chosen], [render(scene)[0] for scene, _ in chosen]
    with torch.no_grad():
        text, _ = clip.encode_text(clip.tokens(captions))
        image = clip.encode_image(clip.processor(images, return_tensors="pt")["pixel_values"])
    similarity = text @ image.T
    for title, table in (("captions to images", similarity), ("images to captions", similarity.T)):
        rank = (table > table.diag()[:, None]).sum(1)
        for k, least in ((1, None), (5, None), (10, 0.95)):
            report.rate(f"CLIP R@{k}, {title}", int((rank < k).sum()), pairs, least)


def check_vae(report: Report, scenes: int = 300) -> None:
    """Peak signal-to-noise ratio of decoded latents, in dB."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(WEIGHTS / "sd" / "vae", use_safetensors=True).float()
    images = np.stack(
        [np.asarray(render(sample(CHECK_SEED + 20_000 + i))[0]) for i in range(scenes)]
    )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    with torch.no_grad():
        y = vae.decode(vae.encode(x * 2 - 1).latents).sample.div(2).add(0.5).clamp(0, 1)
    report.line(
        "VAE PSNR, dB",
        float((-10 * (x - y).square().mean((1, 2, 3)).log10()).mean()),
        27,
        f"n={scenes}",
    )


def _held_out(
    count: int | None, first: int, wording: Wording, kinds: Sequence[str] | None = None
) -> Iterator[tuple[Scene, str]]:
    """Scenes from seed `first` on with `count` things and a held-out caption of each; endless."""
    seed = first
    while True:
        seed += 1
        rng = random.Random(seed)
        chosen = (rng.choice(kinds),) if kinds else None
        scene = sample(seed, chosen)
        if (count is None or len(scene.things) == count) and (
            caption := held_out_caption(scene, wording)
        ):
            yield scene, caption


class Painter:
    """Draws captions with the original model and detects what is there."""

    def __init__(self, detector: Detector) -> None:
        self.pipe = pipeline.open_pipeline(WEIGHTS / "sd")
        self.models = presets.resolve()
        self.detector = detector
        self.seed = 7_000_000

    def __call__(self, captioned: Sequence[tuple[Scene, str]]) -> list[Shown]:
        shown = []
        for start in range(0, len(captioned), 50):
            part = captioned[start : start + 50]
            seeds = list(range(self.seed, self.seed + len(part)))
            self.seed += len(part)
            images = pipeline.draw(
                self.pipe, [c for _, c in part], seeds, self.models.steps, self.models.guidance
            )
            for (scene, _), boxes in zip(part, self.detector(images), strict=True):
                shown.append(Shown(tuple(t.name for t in scene.things), _classes(boxes)))
        return shown


def _take(source: Iterator[tuple[Scene, str]], n: int) -> list[tuple[Scene, str]]:
    return [next(source) for _ in range(n)]


def check_images(report: Report, paint: Painter) -> None:
    """Whether what a held-out caption names is in the image that the original model draws."""
    first = CHECK_SEED + 30_000
    per_class: dict[str, list[bool]] = defaultdict(list)
    singles: dict[str, list[Shown]] = {}
    for i, name in enumerate(CLASSES):
        kinds = [kind for kind, of in CLASS_OF.items() if of == name]
        singles[name] = paint(_take(_held_out(1, first + 5_000 * i, "direct", kinds), 15))
    hits = {name: [name in s.found for s in shown] for name, shown in singles.items()}
    macro = float(np.mean([np.mean(h) for h in hits.values()]))
    report.line("one object, macro over classes", macro, 0.99, f"n={sum(map(len, hits.values()))}")
    for name, found in hits.items():
        per_class[name] += found
    for count, least, n in ((2, 0.95, 300), (3, 0.85, 300)):
        shown = paint(_take(_held_out(count, first + 100_000 * count, "direct"), n))
        all_found = [(name, name in s.found) for s in shown for name in s.named]
        report.rate(
            f"{('', '', 'two', 'three')[count]} objects",
            sum(f for _, f in all_found),
            len(all_found),
            least,
        )
        for name, hit in all_found:
            per_class[name].append(hit)
    for name in CLASSES:
        report.rate(
            f"  {name}, one to three objects", sum(per_class[name]), len(per_class[name]), 0.9
        )
    for a, b in LOOK_ALIKES:
        wrong = sum(b in s.found for s in singles[a]) + sum(a in s.found for s in singles[b])
        n = len(singles[a]) + len(singles[b])
        report.line(f"  {a} and {b} mistaken for each other", wrong / n, None, f"n={n}", most=0.03)
    wordings: tuple[tuple[Wording, dict[str, Any]], ...] = (
        ("synonym", SYNONYMS),
        ("name-free", NAME_FREE),
    )
    for k, (wording, table) in enumerate(wordings):
        source = _held_out(1, first + 500_000 + 50_000 * k, wording, list(table))
        shown = paint(_take(source, 150))
        report.rate(
            f"{wording} captions", sum(s.named[0] in s.found for s in shown), len(shown), 0.9
        )
    empty = paint([(s, c) for s, c in _empty(first + 700_000, 40)])
    report.rate("empty places with nothing detected", sum(not s.found for s in empty), len(empty))


def _empty(first: int, n: int) -> list[tuple[Scene, str]]:
    """Places without things; their captions are few, so none of them is held out."""
    from ..captions import describe

    scenes = [sample(first + i, ()) for i in range(n)]
    return [(scene, describe(scene, random.Random(scene.seed)).text) for scene in scenes]


def main() -> None:
    """All checks; the bars of issue 2."""
    os.environ.update(CONTAINED)
    runtime.quiet_libraries()
    report, detector = Report(), Detector(WEIGHTS / "detector.safetensors")
    check_vae(report)
    check_clip(report)
    check_detector(report, detector)
    check_images(report, Painter(detector))
    if report.missed:
        sys.exit(f"missed: {', '.join(report.missed)}")


if __name__ == "__main__":
    main()
