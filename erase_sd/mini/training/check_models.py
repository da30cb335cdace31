"""Checks of the miniature VAE, CLIP and detector, on scenes that trained none of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ...detection.benchmark import detector_quality
from ...detection.worker import Detector
from ...models.text_encoder import load_clip
from ...run.measurements import Detection
from ...scoring.rates import THRESHOLD
from .. import WEIGHTS
from ..captions import Wording, held_out_caption
from ..scenes import CLASSES, Scene, render_scene, sample
from .checklist import Checklist

CHECK_SEED = 40_000_000
"""Seed of the first scene for checks; these scenes are used for nothing else."""
CaptionedScene = tuple[Scene, str]


def held_out_scenes(
    count: int | None, first: int, wording: Wording, kinds: Sequence[str] | None = None
) -> Iterator[CaptionedScene]:
    """Endless scenes of `count` things (None: any number), each with a held-out caption.

    Seeds begin after `first`; `kinds` restricts scenes to one thing of these kinds.
    """
    seed = first
    while True:
        seed += 1
        rng = random.Random(seed)
        scene = sample(seed, (rng.choice(kinds),) if kinds else None)
        if count is None or len(scene.things) == count:
            caption = held_out_caption(scene, wording)
            if caption:
                yield scene, caption


def detected_classes(detections: Sequence[Detection]) -> frozenset[str]:
    """Classes detected at the default threshold."""
    return frozenset(d.name for d in detections if d.probability >= THRESHOLD)


def check_vae(checks: Checklist, scenes: int = 300) -> None:
    """Peak signal-to-noise ratio of decoded latents, dB."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(WEIGHTS / "sd" / "vae", use_safetensors=True).float()
    images = [np.asarray(render_scene(sample(CHECK_SEED + 20_000 + i))[0]) for i in range(scenes)]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(255)
    with torch.no_grad():
        y = vae.decode(vae.encode(x * 2 - 1).latents).sample.div(2).add(0.5).clamp(0, 1)
    psnr = float((-10 * (x - y).square().mean((1, 2, 3)).log10()).mean())
    checks.measure("VAE PSNR, dB", psnr, f"n={scenes}", least=27)


def check_clip(checks: Checklist, pairs: int = 500) -> None:
    """Retrieval among held-out pairs."""
    clip = load_clip(WEIGHTS / "clip")
    source = held_out_scenes(None, CHECK_SEED + 10_000, "direct")
    chosen = [next(source) for _ in range(pairs)]
    with torch.no_grad():
        text, _ = clip.encode_text(clip.tokens([caption for _, caption in chosen]))
        image = clip.encode_image(clip.process([render_scene(scene)[0] for scene, _ in chosen]))
    similarity = text @ image.T
    for title, table in (("captions to images", similarity), ("images to captions", similarity.T)):
        rank = (table > table.diag()[:, None]).sum(1)
        for k, least in ((1, None), (5, None), (10, 0.95)):
            checks.rate(f"CLIP R@{k}, {title}", int((rank < k).sum()), pairs, least)


def check_detector(checks: Checklist, detector: Detector, scenes: int = 500) -> None:
    """mAP50 and false positives on new renders."""
    rendered = [render_scene(sample(CHECK_SEED + i)) for i in range(scenes)]
    detections = detector([image for image, _ in rendered], min_probability=0.001)
    truth = [[(box[0], box[1:]) for box in boxes] for _, boxes in rendered]
    quality = detector_quality(detections, truth)
    checks.measure("detector mAP50, new renders", quality.map50, f"n={scenes}", least=0.97)
    false, absent = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for image_detections, boxes in zip(detections, truth, strict=True):
        shown, detected = {name for name, _ in boxes}, detected_classes(image_detections)
        for name in CLASSES:
            absent[name] += name not in shown
            false[name] += name in detected and name not in shown
    worst = max(CLASSES, key=lambda name: false[name] / absent[name])
    checks.measure(
        "detector false positives, worst class", false[worst] / absent[worst],
        f"{worst}, n={absent[worst]}", most=0.01,
    )  # fmt: skip
