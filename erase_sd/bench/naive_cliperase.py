"""A rival: CLIPErase (arXiv 2410.23330) as its paper describes it, written straight down."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

BATCH, EPOCHS, LEARNING_RATE = 16, 20, 1e-6  # the paper's
Pair = tuple[Path, str]
"""An image file and its caption."""


def naive_seconds_per_step(
    clip: Path, forget: Sequence[Pair], retain: Sequence[Pair], steps: int
) -> float:
    """Seconds of a step, after one that warms up: both towers train on 16 forget and 16 retain pairs,
    images are read and processed anew, and the original runs again on every batch."""
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    student = CLIPModel.from_pretrained(clip).float()
    original = copy.deepcopy(student).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessor.from_pretrained(clip)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))

    def encode(model: CLIPModel, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Image and caption features, (16, projection) each."""
        images = [Image.open(path).convert("RGB") for path, _ in pairs]
        tokens = tokenizer([c for _, c in pairs], padding="max_length", return_tensors="pt")
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        out = model(pixel_values=pixels, **tokens)
        return out.image_embeds, out.text_embeds

    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        rows = range(BATCH * step, BATCH * (step + 1))
        forget_image, forget_text = encode(student, [forget[i % len(forget)] for i in rows])
        batch = [retain[i % len(retain)] for i in rows]
        image, text = encode(student, batch)
        with torch.no_grad():
            was_image, was_text = encode(original, batch)
        scale = student.logit_scale.exp()
        now, was = scale * image @ text.T, scale * was_image @ was_text.T
        target = torch.arange(BATCH)
        contrast = F.cross_entropy(now, target) + F.cross_entropy(now.T, target)
        change = F.kl_div(now.log_softmax(-1), was.softmax(-1), reduction="batchmean")
        loss = 3 * (forget_image * forget_text).sum(-1).mean() + contrast / 2 + 3 * change
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (time.perf_counter() - began) / steps
