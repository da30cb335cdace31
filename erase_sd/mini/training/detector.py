"""Trains the miniature detector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ..scenes import CLASSES, SIZE, render_scene, sample
from .data import DETECTOR_SCENES, detector_targets, scenes_of
from .fit import fit
from .rendering import TRAIN_SEED

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny


def build_detector(folder: Path) -> None:
    """ultralytics' `yolov5n` from scratch, with its own loss, at twice the images' size (128 px).

    Half of the renders pass through the VAE, so that it knows decoded images too.
    """
    from diffusers import AutoencoderTiny
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(4)
    model = DetectionModel("yolov5n.yaml", nc=len(CLASSES), verbose=False)
    model.args = get_cfg()
    vae = AutoencoderTiny.from_pretrained(folder / "sd" / "vae", use_safetensors=True)
    images = scenes_of(folder)[:DETECTOR_SCENES]
    boxes = [
        detector_targets(render_scene(sample(TRAIN_SEED + i))[1]) for i in range(DETECTOR_SCENES)
    ]
    loss = _DetectionLoss(model, vae, images, boxes)
    fit("detector", model, loss, steps=1_600, learning_rate=2e-3, average=0.995, folder=folder)
    weights = {
        n: t.half().contiguous() for n, t in model.state_dict().items() if t.is_floating_point()
    }
    save_file(
        weights,
        folder / "detector_fp16.safetensors",
        metadata={
            "architecture": "yolov5n.yaml",
            "names": json.dumps(CLASSES),
            "size": str(2 * SIZE),
        },
    )


@dataclass(frozen=True)
class _DetectionLoss:
    """The detector's loss on a random batch, flipped at random."""

    model: Any
    vae: AutoencoderTiny
    images: Tensor
    """uint8, (scenes, 3, 64, 64)."""
    boxes: list[Tensor]

    def __call__(self, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.images), (48,), generator=generator)
        x = self.images[rows].float().div(255)
        with torch.no_grad():
            z = self.vae.encode(x[::2] * 2 - 1).latents
            z = z + 0.15 * torch.randn(z.shape, generator=generator)
            x[::2] = self.vae.decode(z).sample.div(2).add(0.5).clamp(0, 1)
        flips = torch.rand(len(rows), generator=generator) < 0.5
        x = torch.where(flips[:, None, None, None], x.flip(-1), x)
        # (boxes, 6): image of the batch, class, centre x, centre y, width, height
        targets = torch.cat(
            [F.pad(self.boxes[row], (1, 0), value=i) for i, row in enumerate(rows.tolist())]
        )
        flipped = flips[targets[:, 0].long()]
        targets[:, 2] = torch.where(flipped, 1 - targets[:, 2], targets[:, 2])
        batch = {
            "img": F.interpolate(x, scale_factor=2, mode="bilinear"),
            "batch_idx": targets[:, 0],
            "cls": targets[:, 1:2],
            "bboxes": targets[:, 2:],
        }
        terms: Tensor = self.model.loss(batch)[0]
        return terms.sum() / len(rows)
