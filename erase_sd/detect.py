"""Detections in images, in a process of its own; the only ultralytics user.

Importing ultralytics changes Pillow for the whole process and may reach for the network, so it is
imported only in the child that `detect` starts, with both switched off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .errors import DataError, ModelError

LOWEST = 0.1  # least probability kept, so that thresholds from here on can be swept
IOU = 0.45  # of YOLOv5's non-maximum suppression; max_det below is ultralytics' 300
MAX_DETECTIONS = 300
CONTAINED = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "HF_HUB_OFFLINE": "1",
}


def detect(detector: Path, images: list[Path]) -> dict[str, Any]:
    """Runs the detector over `images` in a child process.

    Returns `{"names": [...], "size": pixels, "rows": [[{"class", "probability", "box"}, ...], ...]}`,
    a row an image in order, boxes xyxy in pixels of the image, probabilities 0-1. Raises DataError
    for an image that cannot be read and ModelError for a file that is no detector.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(
            json.dumps({"detector": str(detector), "images": [str(path) for path in images]})
        )
        child = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "erase_sd.detect", str(request), str(answer)],
            env=os.environ | CONTAINED | {"YOLO_CONFIG_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not answer.is_file():
            last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
            raise ModelError(f"--detector {detector}: the detector's process failed ({last})")
        found: dict[str, Any] = json.loads(answer.read_text())
    if "error" in found:
        raise {"DataError": DataError, "ModelError": ModelError}[found["kind"]](found["error"])
    return found


class Detector:
    """An ultralytics detection model in a `.safetensors` file, with its names and its size.

    The file's metadata holds `architecture` (one of ultralytics' own model files, such as
    `yolov5n.yaml`), `names` (a JSON list) and `size` (pixels, the square it was trained at).
    Only the child process makes one.
    """

    def __init__(self, path: Path) -> None:
        import torch
        from PIL import Image
        from safetensors import SafetensorError, safe_open

        pillow_open = Image.open
        from ultralytics.nn.tasks import DetectionModel
        from ultralytics.utils import LOGGER

        Image.open = pillow_open  # undo the import's patch
        LOGGER.setLevel("ERROR")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"--detector {path}: cannot be read ({error})") from None
        if missing := {"architecture", "names", "size"} - set(about):
            raise ModelError(
                f"--detector {path}: no detector, its metadata lacks {sorted(missing)}"
            )
        self.names: list[str] = json.loads(about["names"])
        self.size = int(about["size"])
        self.model = DetectionModel(about["architecture"], nc=len(self.names), verbose=False)
        try:
            self.model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise ModelError(
                f"--detector {path}: does not fit its architecture ({first})"
            ) from None
        learned = dict(self.model.named_parameters())
        if lost := sorted(learned.keys() - tensors.keys()):
            raise ModelError(f"--detector {path}: lacks {lost[0]}")
        if not all(torch.isfinite(p).all() for p in learned.values()):
            raise ModelError(f"--detector {path}: damaged, weights are not finite")
        self.model.eval()

    def __call__(self, images: list[Any], lowest: float = LOWEST) -> list[list[dict[str, Any]]]:
        """Boxes of RGB PIL images, xyxy in pixels of each image; most probable first."""
        import numpy as np
        import torch
        from ultralytics.data.augment import LetterBox
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        square = LetterBox(new_shape=(self.size, self.size), auto=False)
        pixels = np.stack([square(image=np.asarray(image)) for image in images])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
        with torch.no_grad():
            found = non_max_suppression(
                self.model(x), lowest, IOU, max_det=MAX_DETECTIONS, max_time_img=60.0
            )
        rows = []
        for image, boxes in zip(images, found, strict=True):
            boxes[:, :4] = scale_boxes((self.size, self.size), boxes[:, :4], image.size[::-1])
            rows.append(
                [
                    {"class": self.names[int(c)], "probability": round(p, 4),
                     "box": [round(v, 2) for v in xyxy]}
                    for *xyxy, p, c in boxes.tolist()
                ]
            )  # fmt: skip
        return rows


def _serve(request: Path, answer: Path) -> None:
    from .encoders import open_image

    asked = json.loads(request.read_text())
    try:
        detector = Detector(Path(asked["detector"]))
        rows = []
        for start in range(0, len(asked["images"]), 64):
            rows += detector([open_image(Path(p)) for p in asked["images"][start : start + 64]])
        reply: dict[str, Any] = {"names": detector.names, "size": detector.size, "rows": rows}
    except (DataError, ModelError) as error:
        reply = {"kind": type(error).__name__, "error": str(error)}
    answer.write_text(json.dumps(reply))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
