"""Reads a detector from its file: YOLOv5 of both generations, the anchor-based original and ultralytics'
anchor-free one; ultralytics' later detectors are built by `ultralytics_file`.

The layers are ultralytics', the anchor head is ours. ultralytics is imported only when a model is
built, so only in the processes that detect.
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

from ..data.pickles import Inert
from ..errors import ModelError, reason
from ..models import unpickle
from . import ultralytics_file
from .vocabulary import Vocabulary

DEFAULT_SIZE = 640  # pixels; what YOLOv5's .pt files are trained at
SCALES = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}  # by the channels of the first layer
STRIDES = (8, 16, 32)
EXPECTED = "YOLOv5 n, s, m, l or x for detection, release 6 or later"
EXPECTED_PT = f"{EXPECTED}, or YOLOv8, 11, 12, 26, YOLO-World or YOLOE of ultralytics"


@dataclass(frozen=True)
class LoadedDetector:
    """A detector as stored in its file.

    `model` maps images (n, 3, height, width), 0-1, to (n, 4 + classes, boxes): center, width and
    height in pixels of the input, and the probability of each class, 0-1.
    """

    model: nn.Module
    names: list[str]
    size: int
    """Side of the square that the model was trained on, pixels."""
    kind: str
    """Such as "yolov5n anchor-based"."""
    vocabulary: Vocabulary | None = None
    """Accepts more classes; None unless the detector has an open vocabulary."""


class AnchorHead(nn.Module):
    """The head of YOLOv5 release 6 (Jocher et al. 2020, `Detect` in its `models/yolo.py`).

    A 1x1 convolution per level gives (x, y, w, h, objectness, classes) for each cell and anchor:
    center (2 sigmoid - 0.5 + cell) stride, size (2 sigmoid)^2 anchor stride, probability
    objectness x class.
    """

    anchors: Tensor  # (levels, anchors, 2), width and height in cells

    def __init__(self, channels: list[int], classes: int, anchors: int = 3) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(c, anchors * (5 + classes), 1) for c in channels)
        self.register_buffer("anchors", torch.ones(len(channels), anchors, 2))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor]:
        """Maps (n, channels, rows, columns) of all levels to (n, 4 + classes, boxes)."""
        levels = []
        for conv, x, anchors, stride in zip(self.m, maps, self.anchors, STRIDES, strict=True):
            n, _, rows, columns = x.shape
            out = conv(x).view(n, len(anchors), -1, rows, columns).sigmoid()
            axes = [torch.arange(k, device=x.device) for k in (columns, rows)]
            cell = torch.stack(torch.meshgrid(*axes, indexing="xy"))  # (2, rows, columns)
            center = (2 * out[:, :, :2] - 0.5 + cell) * stride
            size = (2 * out[:, :, 2:4]).square() * anchors[:, :, None, None] * stride
            boxes = torch.cat((center, size, out[:, :, 4:5] * out[:, :, 5:]), 2)
            levels.append(boxes.transpose(1, 2).flatten(2))
        return (torch.cat(levels, 2),)  # a tuple, as ultralytics' own head returns


def read_detector(path: Path) -> LoadedDetector:
    """The detector in a `.pt` file of either generation, or in a `.safetensors` file of this project.

    No code in the file is run. Raises ModelError if it is missing, damaged, or not a supported detector.
    """
    if not path.is_file():
        raise _error(path, "no such file")
    if path.suffix in {".pt", ".pth"} or zipfile.is_zipfile(path):
        return _read_pt(path)
    return _read_safetensors(path)


def _error(path: Path, rule: str) -> ModelError:
    return ModelError(rule, field="detector", value=path)


def _read_pt(path: Path) -> LoadedDetector:
    """A checkpoint of YOLOv5 or ultralytics: a dict with the averaged (`ema`) or the last `model`."""
    checkpoint = unpickle.read_pickle(path)
    try:
        averaged = checkpoint.get("ema")
        stored = checkpoint["model"] if averaged is None else averaged
        tensors = unpickle.tensors(stored)
        names = _names(stored.state["names"])
        activations = {m.name for name, m in unpickle.modules(stored) if name.endswith(".act.")}
        architecture = ultralytics_file.architecture_of(stored)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise _error(path, f"not a detector ({why}); needs {EXPECTED_PT}") from None
    if architecture:
        return _read_later(path, stored, tensors, names, architecture)
    if foreign := activations - {"torch.nn.modules.activation.SiLU"}:
        raise _error(path, f"uses {min(foreign)} where YOLOv5 uses SiLU")
    first = tensors.get("model.0.conv.weight")
    scale = None if first is None else SCALES.get(len(first))
    if scale is None:
        raise _error(path, f"not a supported detector; needs {EXPECTED_PT}")
    anchor_based = "model.24.anchors" in tensors
    model = _build(scale, len(names), anchor_based)
    _load_weights(path, model, tensors, EXPECTED_PT)
    kind = f"yolov5{scale} {'anchor-based' if anchor_based else 'anchor-free'}"
    return LoadedDetector(model, names, DEFAULT_SIZE, kind)


def _read_later(
    path: Path,
    stored: Inert,
    tensors: dict[str, Tensor],
    names: list[str],
    architecture: re.Match[str],
) -> LoadedDetector:
    """A detector of `ultralytics_file`; an open-vocabulary one with the classes that its file holds."""
    try:
        boxes = ultralytics_file.build(architecture, stored, tensors)
    except ModelError as error:
        raise _error(path, error.rule) from None
    except StopIteration:
        raise _error(path, "has no head for detection, or fixed prompts (prompt-free)") from None
    _load_weights(path, boxes.model, tensors, EXPECTED_PT)
    kind = architecture[0]
    if "world" not in kind and not kind.startswith("yoloe"):
        return LoadedDetector(boxes, names, DEFAULT_SIZE, kind)
    vocabulary = Vocabulary(boxes.model, [])
    try:
        vocabulary.restore(stored, names)
    except Exception as error:  # a foreign record can raise anything
        raise _error(path, f"damaged class embeddings ({reason(error)})") from None
    kind = f"{kind} open-vocabulary"
    return LoadedDetector(boxes, vocabulary.names, DEFAULT_SIZE, kind, vocabulary)


def _read_safetensors(path: Path) -> LoadedDetector:
    """Metadata: `architecture` (such as `yolov5n.yaml`), `names` (JSON list), `size` (pixels)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(path, file)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _error(path, f"cannot be read ({reason(error)})") from None
    architecture = re.fullmatch(r"yolov5([nsmlx])\.yaml", metadata["architecture"])
    if not architecture:
        name = metadata["architecture"]
        raise _error(path, f"architecture {name} is not supported; needs {EXPECTED}")
    try:
        names, size = _names(json.loads(metadata["names"])), int(metadata["size"])
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise _error(path, f"damaged metadata ({error})") from None
    if size < STRIDES[-1] or size % STRIDES[-1]:
        raise _error(path, f"damaged metadata (size {size}, needs a multiple of {STRIDES[-1]})")
    model = _build(architecture[1], len(names), anchor_based=False)
    _load_weights(path, model, tensors)
    return LoadedDetector(model, names, size, f"yolov5{architecture[1]} anchor-free")


def names_in_header(path: Path) -> list[str]:
    """Class names of a `.safetensors` file of this project, whose weights are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _names(json.loads(_metadata(path, file)["names"]))
    except (OSError, SafetensorError, TypeError, ValueError, KeyError, RecursionError) as error:
        raise _error(path, f"cannot be read ({reason(error)})") from None


def _metadata(path: Path, file: Any) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    if missing := sorted({"architecture", "names", "size"} - set(metadata)):
        why = f"its metadata lacks {', '.join(missing)}"
        raise _error(path, f"not a detector of erase-sd ({why}); needs the original .pt")
    return metadata


def _names(stored: Any) -> list[str]:
    """Class names in lower case, as captions are compared with them.

    `stored` is a list, or a dict by number, which may be written as text. Raises TypeError or KeyError
    if it is neither.
    """
    if isinstance(stored, dict):
        by_number = {int(number): name for number, name in stored.items()}
        stored = [by_number[number] for number in range(len(by_number))]
    if not isinstance(stored, list | tuple) or not all(isinstance(name, str) for name in stored):
        raise TypeError("class names are not text")
    return [name.strip().lower() for name in stored]


def _build(scale: str, classes: int, anchor_based: bool) -> nn.Module:
    """An untrained model. The two generations differ only in the last layer."""
    from ultralytics.nn.modules import Conv
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import ROOT, YAML

    # By its full path: ultralytics prefers a `yolov5n.yaml` in the working directory.
    config = YAML.load(ROOT / "cfg" / "models" / "v5" / "yolov5.yaml")
    model: nn.Module = DetectionModel(config | {"scale": scale}, nc=classes, verbose=False)
    layers: Any = model.model
    if anchor_based:
        old = layers[-1]
        layers[-1] = AnchorHead([level[0].conv.in_channels for level in old.cv2], classes)
        layers[-1].i, layers[-1].f = old.i, old.f  # where ultralytics' loop finds its inputs
    for module in model.modules():
        if isinstance(module, Conv):
            module.act = nn.SiLU()  # recent releases build SPPF's first one without (YOLO26)
    return model.eval()


def _load_weights(
    path: Path, model: nn.Module, tensors: dict[str, Tensor], expected: str = EXPECTED
) -> None:
    """Loads exactly the model's tensors; raises ModelError if one is missing or unknown.

    Batch counters of training are ignored.
    """
    counter = "num_batches_tracked"
    weights = {name: t for name, t in tensors.items() if not name.endswith(counter)}
    needed = {name for name in model.state_dict() if not name.endswith(counter)}
    if missing := sorted(needed - weights.keys()):
        raise _error(path, f"lacks {missing[0]}; needs {expected}")
    if unknown := sorted(weights.keys() - needed):
        raise _error(path, f"has an unknown layer {unknown[0]}; needs {expected}")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise _error(path, f"does not fit its architecture ({first})") from None
    if not all(torch.isfinite(t).all() for t in weights.values()):
        raise _error(path, "damaged, its weights are not finite")
