"""How good a detector is on labelled photographs: precision, recall, mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DataError, SettingError
from ..files import hash_file
from ..models.clip import open_image

if TYPE_CHECKING:
    from .detector import Detector

LOWEST, IOU = 0.001, 0.6  # what YOLOv5's own val.py keeps and suppresses at
OVERLAPS = np.linspace(0.5, 0.95, 10)  # IoU from which a box is a hit, as COCO's mAP50-95

Boxes = Sequence[tuple[int, Sequence[float]]]
"""Class number and box, xyxy in pixels."""


@dataclass(frozen=True)
class Measured:
    """Means over the classes that are labelled; 0-1."""

    precision: float
    recall: float
    probability: float
    """Least probability that precision and recall are of: where the mean F1 is best."""
    map50: float
    map: float
    """Mean of the average precision at an IoU of 0.5, 0.55 ... 0.95."""


def check(detector: Detector, path: Path, folder: Path) -> str:
    """Lines that say how `detector`, read from `path`, does on `folder/images` with the boxes of
    `folder/labels`, in YOLO's format. Raises DataError and SettingError."""
    if detector.size < 32 or detector.size % 32:
        raise SettingError(f"--size {detector.size}: needs a multiple of 32")
    images = sorted(p for p in (folder / "images").glob("*") if p.is_file())
    if not images:
        raise DataError(f"{folder / 'images'}: no images")
    found, truths = [], []
    for image in images:
        pixels = open_image(image)
        label = folder / "labels" / f"{image.stem}.txt"
        truths.append(read_boxes(label, pixels.size, len(detector.names)))
        [rows] = detector([pixels], LOWEST, IOU, several_classes=True)
        found.append([(detector.names.index(r["class"]), r["box"], r["probability"]) for r in rows])
    count = sum(map(len, truths))
    if not count:
        raise DataError(f"{folder / 'labels'}: no boxes for {len(images)} images")
    m = measure(found, truths)
    return (
        f"{path.name}: {detector.kind}, {len(detector.names)} classes, sha256 {hash_file(path)}\n"
        f"{len(images)} images with {count} boxes at {detector.size} px; "
        f"probability from {LOWEST}, IoU {IOU}\n"
        f"precision {m.precision:.3f}, recall {m.recall:.3f} at probability {m.probability:.3f}; "
        f"mAP50 {m.map50:.3f}, mAP50-95 {m.map:.3f}"
    )


def read_boxes(path: Path, size: tuple[int, int], classes: int) -> list[tuple[int, list[float]]]:
    """Boxes of a label file, lines of class, centre x, centre y, width, height, all 0-1.

    No file: no boxes. `size` is the image's width and height. Raises DataError.
    """
    if not path.is_file():
        return []
    boxes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            kind, x, y, w, h = (float(word) for word in line.split())
            if kind not in range(classes) or not all(0 <= v <= 1 for v in (x, y, w, h)):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path}:{number}: needs a class from 0 to {classes - 1} and a box of four numbers "
                f"from 0 to 1, got {line[:60]!r}"
            ) from None
        edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        boxes.append((int(kind), [e * s for e, s in zip(edges, size * 2, strict=True)]))
    return boxes


def measure(
    found: Sequence[Sequence[tuple[int, Sequence[float], float]]], truths: Sequence[Boxes]
) -> Measured:
    """From each image's detections (class, box, probability; most probable first) and true boxes."""
    from ultralytics.utils.metrics import ap_per_class, smooth

    hit = np.concatenate([_hits(f, t) for f, t in zip(found, truths, strict=True)])
    kinds, _, probabilities = ([row[k] for f in found for row in f] for k in range(3))
    table: Any = ap_per_class(
        hit, np.array(probabilities), np.array(kinds), np.array([k for t in truths for k, _ in t])
    )
    precision, recall, average, f1, at = table[2], table[3], table[5], table[9], table[10]
    return Measured(
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        probability=float(at[smooth(f1.mean(0), 0.1).argmax()]),
        map50=float(average[:, 0].mean()),
        map=float(average.mean()),
    )


def _hits(found: Sequence[tuple[int, Sequence[float], float]], truth: Boxes) -> np.ndarray:
    """(detections, 10): whether each finds a box of its class that no more probable one found."""
    from torchvision.ops import box_iou

    hits = np.zeros((len(found), len(OVERLAPS)), bool)
    if not found or not truth:
        return hits
    there = torch.tensor([box for _, box in truth])
    overlaps = box_iou(torch.tensor([box for _, box, _ in found]), there).numpy()
    same = np.array([[kind == k for k, _ in truth] for kind, _, _ in found])
    free = np.ones((len(OVERLAPS), len(truth)), bool)
    for i, overlap in enumerate(overlaps * same):
        best = (free * overlap).argmax(1)  # of the boxes still free, at each threshold
        hits[i] = (free * overlap).max(1) >= OVERLAPS
        free[hits[i], best[hits[i]]] = False
    return hits
