"""The child process of `detect`: loads a detector and runs it over images."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..json_process import serve
from ..run.measurements import Detection
from .detector import IOU, MAX_DETECTIONS, MIN_PROBABILITY, DetectorAnswer, check_class

if TYPE_CHECKING:
    from PIL.Image import Image

COMPILER: Any = SimpleNamespace(is_compile_supported=lambda _: False)
"""Stands in for PyTorch's compiler while torchvision is imported."""
MAX_PIXELS = 1 << 22  # per forward pass: 10 images of 640 x 640, 256 of 128 x 128


class Detector:
    """A detector read from a file. Only for a process of its own: it imports ultralytics.

    An open-vocabulary detector gets the `words` as classes too, by its text encoder.
    """

    def __init__(
        self, path: Path, words: Sequence[str] = (), text_encoder: Path | None = None
    ) -> None:
        from PIL import Image

        from .. import runtime
        from .yolov5 import read_detector

        pillow_open = Image.open
        from ultralytics.utils import LOGGER

        LOGGER.setLevel("ERROR")
        loaded = read_detector(path)
        Image.open = pillow_open  # undo the patch of ultralytics' import
        self.words = list(words) if loaded.vocabulary else None
        """What was added to an open vocabulary; None for a closed one."""
        if loaded.vocabulary:
            loaded.vocabulary.add(words, text_encoder)
        self.names = loaded.vocabulary.names if loaded.vocabulary else loaded.names
        self.kind = loaded.kind
        self.size = loaded.size
        """Side of the square that each image is fitted into, pixels; may be set, to a multiple of 32."""
        self.device = runtime.device()
        self.model = loaded.model.to(self.device)

    def __call__(
        self,
        images: Sequence[Image],
        min_probability: float = MIN_PROBABILITY,
        iou: float = IOU,
        several_classes: bool = False,
    ) -> list[tuple[Detection, ...]]:
        """Detections in RGB images, most probable first.

        `several_classes` keeps every class of a box that is probable enough, not only the best. If memory
        runs out, batches get smaller; ModelError if a single image does not fit.
        """
        from .. import runtime

        batches = runtime.in_batches(
            images,
            max(1, MAX_PIXELS // self.size**2),
            lambda batch: self._detect(batch, min_probability, iou, several_classes),
        )
        return [detections for _, answers in batches for detections in answers]

    def _detect(
        self, images: Sequence[Image], min_probability: float, iou: float, several_classes: bool
    ) -> list[tuple[Detection, ...]]:
        import numpy as np
        import torch
        from ultralytics.data.augment import LetterBox
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        _import_torchvision()
        square = LetterBox(new_shape=(self.size, self.size), auto=False)
        pixels = np.stack([square(image=np.asarray(image)) for image in images])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device).float().div(255)
        with torch.no_grad():
            boxes_of_images = non_max_suppression(
                self.model(x)[0].cpu(),  # (n, 4 + classes, boxes)
                min_probability,
                iou,
                multi_label=several_classes,
                max_det=MAX_DETECTIONS,
                max_time_img=60.0,
            )
        for image, boxes in zip(images, boxes_of_images, strict=True):
            boxes[:, :4] = scale_boxes((self.size, self.size), boxes[:, :4], image.size[::-1])
        return [tuple(map(self._detection, boxes.tolist())) for boxes in boxes_of_images]

    def _detection(self, row: Sequence[Any]) -> Detection:
        x1, y1, x2, y2, probability, number = row
        return Detection(
            name=self.names[int(number)],
            probability=round(probability, 4),
            box=(round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2)),
        )


def _import_torchvision() -> None:
    """Imports torchvision, whose NMS ultralytics uses once it is imported, without PyTorch's compiler.

    torchvision takes one function of the compiler, for RoI align, and importing it takes a second. A
    release of torchvision that takes more is imported with the compiler.
    """
    name = "torch._dynamo.utils"
    if name not in sys.modules:
        sys.modules[name] = COMPILER
        with contextlib.suppress(ImportError):
            importlib.import_module("torchvision")
        del sys.modules[name]
    importlib.import_module("torchvision")


class Answers:
    """Answers the questions of `detect` with a detector that is loaded before the first one."""

    def __init__(self, question: dict[str, Any]) -> None:
        self._load(question)

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        """The fields of a `DetectorAnswer`."""
        from ..data.images import open_image

        os.chdir(question["folder"])
        if self.detector.words not in (None, question["targets"]):
            self._load(question)
        for target in question["targets"]:
            check_class(target, self.detector.names)
        detections = self.detector([open_image(Path(path)) for path in question["images"]])
        return asdict(
            DetectorAnswer(
                names=tuple(self.detector.names),
                size=self.detector.size,
                kind=self.detector.kind,
                detections=detections,
            )
        )

    def _load(self, question: dict[str, Any]) -> None:
        path, encoder = Path(question["detector"]), question["text_encoder"]
        words = question["targets"]
        self.detector = Detector(path, words, None if encoder is None else Path(encoder))


def main() -> None:
    """Answers its parent."""
    serve(Answers)
