"""Detections in images, in a process of its own.

Importing ultralytics changes Pillow for the whole process and may reach for the network, so it is
imported only in the child that `detect` starts, with both switched off. How good a detector is on
labelled photographs: `python -m erase_sd.detection.detector --check DETECTOR FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import EraseError, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

LOWEST = 0.1  # least probability kept, so that thresholds from here on can be swept
IOU = 0.45  # of YOLOv5's non-maximum suppression; max_det below is ultralytics' 300
MAX_DETECTIONS = 300
PIXELS = 1 << 22  # fed to the model at once: 10 images of 640 x 640, 256 of 128 x 128
CONTAINED = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "HF_HUB_OFFLINE": "1",
}


def detect(
    detector: Path,
    images: list[Path],
    targets: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs the detector over `images` in a child process.

    Returns `{"names": [...], "size": pixels, "kind": text, "rows": [[{"class", "probability",
    "box"}, ...], ...]}`, a row an image in order, boxes xyxy in pixels of the image, probabilities
    0-1. Raises DataError for an image that cannot be read, ModelError for a file that is no
    detector, and, before it looks at any image, SettingError where it has no class for a target.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(
            json.dumps(
                {"detector": str(detector), "images": [str(path) for path in images],
                 "targets": list(targets)}
            )
        )  # fmt: skip
        with (
            Path(folder, "stderr").open("w+", encoding="utf-8", errors="replace") as complaints,
            subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "erase_sd.detection.detector", str(request), str(answer)],
                env=os.environ | CONTAINED | {"YOLO_CONFIG_DIR": folder},
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            ) as child,
        ):
            for line in child.stdout or ():  # how many images are done
                if progress and line.strip().isdecimal():
                    progress(int(line), len(images))
            child.wait()
            complaints.seek(0)
            said = complaints.read().strip().splitlines()
        if not answer.is_file():
            last = said[-1] if said else f"exit status {child.returncode}"
            raise ModelError(f"--detector {detector}: the detector's process failed ({last})")
        found: dict[str, Any] = json.loads(answer.read_text())
    if "error" in found:
        raise getattr(errors, found["raises"])(found["error"])
    return found


class Detector:
    """A YOLOv5 in a file: its class `names`, its `kind`, and `size`, the pixels of the square that
    each image is fitted into. Only the child process and the check commands make one."""

    def __init__(self, path: Path) -> None:
        from PIL import Image

        from .. import runtime
        from . import yolov5

        pillow_open = Image.open
        from ultralytics.utils import LOGGER

        LOGGER.setLevel("ERROR")
        loaded = yolov5.load(path)
        Image.open = pillow_open  # undo the import's patch
        self.names, self.size, self.kind = loaded.names, loaded.size, loaded.kind
        self.device = runtime.device()
        self.model = loaded.model.to(self.device)

    def __call__(
        self,
        images: Sequence[Image],
        lowest: float = LOWEST,
        iou: float = IOU,
        several_classes: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """Boxes of RGB images, xyxy in pixels of each; most probable first.

        `several_classes` keeps every class of a box that is probable enough, not only its best.
        """
        rows = []
        step = max(1, PIXELS // self.size**2)
        for start in range(0, len(images), step):
            part = images[start : start + step]
            rows += self._detect(part, lowest, iou, several_classes)
        return rows

    def _detect(
        self, images: Sequence[Image], lowest: float, iou: float, several_classes: bool
    ) -> list[list[dict[str, Any]]]:
        import numpy as np
        import torch
        import torchvision  # noqa: F401  # ultralytics suppresses with it where it is imported
        from ultralytics.data.augment import LetterBox
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        square = LetterBox(new_shape=(self.size, self.size), auto=False)
        pixels = np.stack([square(image=np.asarray(image)) for image in images])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device).float().div(255)
        with torch.no_grad():
            found = non_max_suppression(
                self.model(x)[0].cpu(),  # (n, 4 + classes, boxes)
                lowest,
                iou,
                multi_label=several_classes,
                max_det=MAX_DETECTIONS,
                max_time_img=60.0,
            )
        for image, boxes in zip(images, found, strict=True):
            boxes[:, :4] = scale_boxes((self.size, self.size), boxes[:, :4], image.size[::-1])
        return [
            [
                {"class": self.names[int(c)], "probability": round(p, 4),
                 "box": [round(v, 2) for v in xyxy]}
                for *xyxy, p, c in boxes.tolist()
            ]
            for boxes in found
        ]  # fmt: skip


def _serve(request: Path, answer: Path) -> None:
    from ..models.clip import open_image
    from ..scoring.rates import check_class

    asked = json.loads(request.read_text())
    try:
        detector = Detector(Path(asked["detector"]))
        for target in asked["targets"]:
            check_class(target, detector.names)
        rows = []
        for start in range(0, len(asked["images"]), 64):
            rows += detector([open_image(Path(p)) for p in asked["images"][start : start + 64]])
            print(len(rows), flush=True)
        reply: dict[str, Any] = {
            "names": detector.names, "size": detector.size, "kind": detector.kind, "rows": rows,
        }  # fmt: skip
    except EraseError as error:
        reply = {"raises": type(error).__name__, "error": str(error)}
    answer.write_text(json.dumps(reply))


def main() -> None:
    """The child of `detect` with two files, or `--check`."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.detection.detector")
    parser.add_argument("files", nargs=2, type=Path, help="DETECTOR FOLDER")
    parser.add_argument(
        "--check", action="store_true", help="measure on FOLDER/images and FOLDER/labels"
    )
    parser.add_argument("--size", type=int, help="pixels; default: the detector's own")
    given = parser.parse_args()
    if not given.check:
        _serve(*given.files)
        return
    from .benchmark import check

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= CONTAINED | {"YOLO_CONFIG_DIR": folder}
        try:
            detector = Detector(given.files[0])
            detector.size = given.size or detector.size
            print(check(detector, *given.files))
        except EraseError as error:
            sys.exit(f"erase_sd.detection.detector: {error}")


if __name__ == "__main__":
    main()
