"""Precision, recall and mean average precision of a detector on labelled photographs.

`python -m erase_sd.detection.benchmark DETECTOR FOLDER` reads FOLDER/images and FOLDER/labels.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images import open_image
from ..errors import DataError, EraseError
from ..files import hash_file
from ..run.measurements import Detection
from .detector import CONTAINED
from .worker import Detector

BENCHMARK_MIN_PROBABILITY, BENCHMARK_IOU = 0.001, 0.6  # as in YOLOv5's own val.py
OVERLAPS = np.linspace(0.5, 0.95, 10)  # least IoU of a hit, the thresholds of COCO's mAP50-95

TrueBoxes = Sequence[tuple[str, Sequence[float]]]
"""Class and box (xyxy, pixels) of everything an image shows."""


@dataclass(frozen=True, kw_only=True)
class DetectorQuality:
    """Means over the labelled classes; 0-1."""

    precision: float
    recall: float
    probability: float
    """Threshold at which precision and recall are measured, the one with the best mean F1."""
    map50: float
    map: float
    """Mean of the average precision at an IoU of 0.5, 0.55 ... 0.95."""


def benchmark(detector: Detector, path: Path, folder: Path) -> str:
    """Quality of `detector`, read from `path`, on a folder of labelled photographs, in three lines.

    Raises DataError if there are no images, no boxes, or labels that cannot be read.
    """
    images = sorted(p for p in (folder / "images").glob("*") if p.is_file())
    if not images:
        raise DataError(f"{folder / 'images'}: no images")
    detections, truth = [], []
    for image in images:
        pixels = open_image(image)
        label = folder / "labels" / f"{image.stem}.txt"
        truth.append(read_boxes(label, pixels.size, detector.names))
        detections += detector(
            [pixels], BENCHMARK_MIN_PROBABILITY, BENCHMARK_IOU, several_classes=True
        )
    count = sum(map(len, truth))
    if not count:
        raise DataError(f"{folder / 'labels'}: no boxes for {len(images)} images")
    quality = detector_quality(detections, truth)
    return (
        f"{path.name}: {detector.kind}, {len(detector.names)} classes, sha256 {hash_file(path)}\n"
        f"{len(images)} images with {count} boxes at {detector.size} px; "
        f"probability from {BENCHMARK_MIN_PROBABILITY}, IoU {BENCHMARK_IOU}\n"
        f"precision {quality.precision:.3f}, recall {quality.recall:.3f} at probability "
        f"{quality.probability:.3f}; mAP50 {quality.map50:.3f}, mAP50-95 {quality.map:.3f}"
    )


def read_boxes(
    path: Path, size: tuple[int, int], names: Sequence[str]
) -> list[tuple[str, list[float]]]:
    """Boxes of a YOLO label file: lines of class number, center x, center y, width and height, 0-1.

    An image without a file has no boxes. `size` is the image's width and height, pixels.
    """
    if not path.is_file():
        return []
    boxes = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            label, x, y, w, h = (float(word) for word in line.split())
            if label not in range(len(names)) or not all(0 <= v <= 1 for v in (x, y, w, h)):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path}:{number}: needs a class from 0 to {len(names) - 1} and a box of four "
                f"numbers from 0 to 1, got {line[:60]!r}"
            ) from None
        edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        boxes.append((names[int(label)], [e * s for e, s in zip(edges, size * 2, strict=True)]))
    return boxes


def detector_quality(
    detections: Sequence[Sequence[Detection]], truth: Sequence[TrueBoxes]
) -> DetectorQuality:
    """Quality on images, from each one's detections (most probable first) and true boxes."""
    from ultralytics.utils.metrics import ap_per_class, smooth

    hits = [match_boxes(d, t, OVERLAPS) for d, t in zip(detections, truth, strict=True)]
    every = [detection for image in detections for detection in image]
    labels = [name for image in truth for name, _ in image]
    number = {name: i for i, name in enumerate(sorted({*labels, *(d.name for d in every)}))}
    table: Any = ap_per_class(
        np.concatenate(hits),
        np.array([d.probability for d in every]),
        np.array([number[d.name] for d in every]),
        np.array([number[name] for name in labels]),
    )
    precision, recall, average, f1, thresholds = table[2], table[3], table[5], table[9], table[10]
    return DetectorQuality(
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        probability=float(thresholds[smooth(f1.mean(0), 0.1).argmax()]),
        map50=float(average[:, 0].mean()),
        map=float(average.mean()),
    )


def match_boxes(
    detections: Sequence[Detection], truth: TrueBoxes, overlaps: np.ndarray
) -> np.ndarray:
    """Which detections are hits, at each least IoU: bool (detections, overlaps).

    `detections` come most probable first. Each takes the true box of its class that overlaps it most
    and that none before it has taken.
    """
    from torchvision.ops import box_iou

    hits = np.zeros((len(detections), len(overlaps)), bool)
    if not detections or not truth:
        return hits
    boxes = torch.tensor([d.box for d in detections])
    ious = box_iou(boxes, torch.tensor([box for _, box in truth])).numpy()
    same_class = np.array([[d.name == name for name, _ in truth] for d in detections])
    free = np.ones((len(overlaps), len(truth)), bool)
    for i, iou in enumerate(ious * same_class):
        best = (free * iou).argmax(1)
        hits[i] = (free * iou).max(1) >= overlaps
        free[hits[i], best[hits[i]]] = False
    return hits


def _size(text: str) -> int:
    size = int(text)
    if size < 32 or size % 32:
        raise argparse.ArgumentTypeError(f"needs a multiple of 32, got {size}")
    return size


def main() -> None:
    """Prints the quality of a detector; exit status 1 with one line on an error."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.detection.benchmark")
    parser.add_argument("detector", type=Path, help="YOLOv5 file (.pt or .safetensors).")
    parser.add_argument("folder", type=Path, help="Folder with images/ and labels/ (YOLO format).")
    parser.add_argument(
        "--size",
        type=_size,
        help="Side of the square that images are fitted into, pixels. [default: the detector's own]",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= CONTAINED | {"YOLO_CONFIG_DIR": folder}
        try:
            detector = Detector(options.detector)
            detector.size = options.size or detector.size
            print(benchmark(detector, options.detector, options.folder))
        except EraseError as error:
            sys.exit(f"erase_sd.detection.benchmark: {error}")


if __name__ == "__main__":
    main()
