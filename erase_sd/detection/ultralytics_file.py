"""Detectors of ultralytics other than YOLOv5: YOLOv8, 11, 12, 26, YOLO-World and YOLOE, from their `.pt`.

Nothing in the file is run: the layers are built from the YAML that ultralytics itself ships for the
architecture that the file names, and the weights are read by `models.unpickle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from torch import Tensor, nn

from ..data.pickles import Inert
from ..errors import ModelError
from ..models import unpickle

NAME = re.compile(
    r"(?P<family>yolov8|yolo1[12]|yolo26|yoloe-v8|yoloe-11|yoloe-26)(?P<scale>[nsmlx])"
    r"(?P<kind>-seg|-world|-worldv2)?"
)
"""Architectures by the names of their YAML files, each with its scale."""
ACTIVATIONS = {
    "torch.nn.modules.activation.SiLU": nn.SiLU,
    "torch.nn.modules.linear.Identity": nn.Identity,
}


class Boxes(nn.Module):
    """The boxes of a detector, without masks: (n, 4 + classes, boxes) in a tuple."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """`images` (n, 3, height, width), 0-1."""
        out = self.model(images)[0]
        boxes: Tensor = out[0] if isinstance(out, tuple) else out  # a segmentation model adds masks
        return (boxes[:, : 4 + int(self.model.model[-1].nc)],)


def architecture_of(stored: Inert) -> re.Match[str] | None:
    """The architecture that a pickled model names, if it is one of `NAME`."""
    config = stored.state.get("yaml")
    name = str(config.get("yaml_file", "")) if isinstance(config, dict) else ""
    return NAME.fullmatch(PurePosixPath(name.replace("\\", "/")).stem)


def build(architecture: re.Match[str], stored: Inert, weights: Mapping[str, Tensor]) -> Boxes:
    """The model without its weights, with the activations of the file, which differ between releases.

    An end-to-end model returns the boxes before its own selection, so that every detector has the same
    non-maximum suppression. Raises ModelError for another architecture.
    """
    model = _untrained(architecture, weights)
    own = dict(model.named_modules())
    for name, module in unpickle.modules(stored):
        layer = name.removesuffix(".act.")
        if layer != name and isinstance(getattr(own.get(layer), "act", None), nn.Module):
            if module.name not in ACTIVATIONS:
                raise ModelError(f"uses {module.name} where ultralytics uses SiLU")
            own[layer].act = ACTIVATIONS[module.name]()
    if getattr(model.model[-1], "one2one_cv2", None) is not None:
        model.end2end = False
    return Boxes(model.eval())


def _untrained(architecture: re.Match[str], weights: Mapping[str, Tensor]) -> Any:
    """The model as ultralytics builds it; its head is as wide as that of the weights."""
    from ultralytics.nn import tasks
    from ultralytics.utils import ROOT, YAML

    family, kind = architecture["family"], architecture["kind"] or ""
    version = re.sub(r"\D", "", family)
    folder = ROOT / "cfg" / "models" / ("v8" if version == "8" else version)
    config = folder / f"{family}{kind}.yaml"  # in full: the working directory may have such a file
    if not config.is_file():
        raise ModelError(f"{family}{kind} is not an architecture of this release of ultralytics")
    name = {"": "DetectionModel", "-seg": "SegmentationModel"}.get(kind, "WorldModel")
    if family.startswith("yoloe"):
        name = "YOLOESegModel" if kind else "YOLOEModel"
    # The width of the class branch depends on the number of classes in training. In an open vocabulary
    # the branch ends in embeddings; taking its inner width for that number gives the same branch.
    last = next(n for n in weights if n.endswith(".cv3.0.2.weight") and "one2one" not in n)
    classes = weights[last].shape[1 if "World" in name or "YOLOE" in name else 0]
    scaled = YAML.load(config) | {"scale": architecture["scale"]}
    return getattr(tasks, name)(scaled, nc=int(classes), verbose=False)
