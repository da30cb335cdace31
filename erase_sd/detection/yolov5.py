"""YOLOv5 from a file, both kinds: the original, anchor-based, and ultralytics' anchor-free.

The layers are ultralytics', the anchor head is ours. ultralytics is imported where a model is built,
so only the processes that detect ever do.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..models import unpickle as pickled

SIZE = 640  # pixels; YOLOv5's own for its .pt files
SCALES = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}  # by the channels of the first layer
STRIDES = (8, 16, 32)
EXPECTED = "YOLOv5 n, s, m, l or x for detection, release 6 or later"


@dataclass(frozen=True)
class Loaded:
    """A model as it lay in its file.

    `model` maps images (n, 3, height, width), 0-1, to (n, 4 + classes, boxes): centre, width and
    height in pixels of the input, and each class's probability, 0-1.
    """

    model: nn.Module
    names: list[str]
    size: int
    """Pixels, the side of the square it is meant to look at."""
    kind: str
    """Such as "yolov5n anchor-based"."""


class AnchorHead(nn.Module):
    """The head of YOLOv5 release 6 (Jocher et al. 2020, `Detect` of its `models/yolo.py`).

    A 1x1 convolution a level gives for each cell and anchor (x, y, w, h, objectness, classes):
    centre (2 sigmoid - 0.5 + cell) stride, size (2 sigmoid)^2 anchor stride, probability
    objectness x class.
    """

    anchors: Tensor  # (levels, anchors, 2), width and height in cells

    def __init__(self, channels: list[int], classes: int, anchors: int = 3) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(c, anchors * (5 + classes), 1) for c in channels)
        self.register_buffer("anchors", torch.ones(len(channels), anchors, 2))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor]:
        """Maps (n, channels, rows, columns) of all levels to (n, 4 + classes, boxes)."""
        found = []
        for conv, x, anchors, stride in zip(self.m, maps, self.anchors, STRIDES, strict=True):
            n, _, rows, columns = x.shape
            out = conv(x).view(n, len(anchors), -1, rows, columns).sigmoid()
            places = [torch.arange(k, device=x.device) for k in (columns, rows)]
            cell = torch.stack(torch.meshgrid(*places, indexing="xy"))  # (2, rows, columns)
            centre = (2 * out[:, :, :2] - 0.5 + cell) * stride
            size = (2 * out[:, :, 2:4]).square() * anchors[:, :, None, None] * stride
            boxes = torch.cat((centre, size, out[:, :, 4:5] * out[:, :, 5:]), 2)
            found.append(boxes.transpose(1, 2).flatten(2))
        return (torch.cat(found, 2),)  # a tuple, as ultralytics' own head returns


def load(path: Path) -> Loaded:
    """The detector in a `.pt` of either kind, or in a `.safetensors` of ours.

    Raises ModelError for a file that is none, is damaged or lacks layers. Nothing of it is run.
    """
    if not path.is_file():
        raise ModelError(f"--detector {path}: no such file")
    if path.suffix in {".pt", ".pth"} or zipfile.is_zipfile(path):
        return _load_pt(path)
    return _load_safetensors(path)


def _load_pt(path: Path) -> Loaded:
    """YOLOv5's checkpoint, or ultralytics': a dict with the averaged (`ema`) or last `model`."""
    checkpoint = pickled.read(path)
    try:
        averaged = checkpoint.get("ema")
        stored = checkpoint["model"] if averaged is None else averaged
        tensors = pickled.tensors(stored)
        names = stored.state["names"]  # a list, or a dict by number
        names = [names[i] for i in range(len(names))]
        acts = {part.name for name, part in pickled.modules(stored) if name.endswith(".act.")}
    except Exception as error:
        raise ModelError(
            f"--detector {path}: no detector ({type(error).__name__}: {error}); needs {EXPECTED}"
        ) from None
    if foreign := acts - {"torch.nn.modules.activation.SiLU"}:
        raise ModelError(f"--detector {path}: has {min(foreign)}, not YOLOv5's SiLU")
    first = tensors.get("model.0.conv.weight", torch.empty(0))
    if not (scale := SCALES.get(len(first))) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"--detector {path}: no detector known here; needs {EXPECTED}")
    anchors = "model.24.anchors" in tensors
    model = _build(scale, len(names), anchors)
    _fill(path, model, tensors)
    return Loaded(
        model, names, SIZE, f"yolov5{scale} {'anchor-based' if anchors else 'anchor-free'}"
    )


def _load_safetensors(path: Path) -> Loaded:
    """Ours: metadata `architecture` (such as `yolov5n.yaml`), `names` (JSON list), `size` (pixels)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"--detector {path}: cannot be read ({error})") from None
    if missing := {"architecture", "names", "size"} - set(about):
        raise ModelError(f"--detector {path}: no detector, its metadata lacks {sorted(missing)}")
    known = re.fullmatch(r"yolov5([nsmlx])\.yaml", about["architecture"])
    if not known:
        raise ModelError(
            f"--detector {path}: architecture {about['architecture']}; needs yolov5n.yaml or its like"
        )
    try:
        names, size = [str(name) for name in json.loads(about["names"])], int(about["size"])
    except (TypeError, ValueError) as error:
        raise ModelError(f"--detector {path}: damaged metadata ({error})") from None
    model = _build(known[1], len(names), anchors=False)
    _fill(path, model, tensors)
    return Loaded(model, names, size, f"yolov5{known[1]} anchor-free")


def _build(scale: str, classes: int, anchors: bool) -> nn.Module:
    """An untrained model. Both kinds share all layers but the last."""
    from ultralytics.nn.modules import Conv
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import ROOT, YAML

    # By its full path: a bare `yolov5n.yaml` would be looked for in the working directory first.
    plan = YAML.load(ROOT / "cfg" / "models" / "v5" / "yolov5.yaml")
    model: nn.Module = DetectionModel(plan | {"scale": scale}, nc=classes, verbose=False)
    layers: Any = model.model
    if anchors:
        old = layers[-1]
        layers[-1] = AnchorHead([level[0].conv.in_channels for level in old.cv2], classes)
        layers[-1].i, layers[-1].f = old.i, old.f  # where ultralytics' loop finds its inputs
    for part in model.modules():
        if isinstance(part, Conv):
            part.act = nn.SiLU()  # YOLO26 has some without
    return model.eval()


def _fill(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts the tensors in place: each there is, and no other. Counters of training are left out."""
    counter = "num_batches_tracked"
    given = {name: t for name, t in tensors.items() if not name.endswith(counter)}
    needed = {name for name in model.state_dict() if not name.endswith(counter)}
    if lost := sorted(needed - given.keys()):
        raise ModelError(f"--detector {path}: lacks {lost[0]}; needs {EXPECTED}")
    if more := sorted(given.keys() - needed):
        raise ModelError(f"--detector {path}: has a layer {more[0]} too many; needs {EXPECTED}")
    try:
        model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ModelError(f"--detector {path}: does not fit its architecture ({first})") from None
    if not all(torch.isfinite(t).all() for t in given.values()):
        raise ModelError(f"--detector {path}: damaged, weights are not finite")
