"""Detectors of ultralytics beyond YOLOv5: nothing in their files runs, and an open vocabulary takes any
word that its own text encoder can write."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from erase_sd.data.concept import Concept
from erase_sd.detection.detector import detect, detector_kept
from erase_sd.detection.worker import Detector
from erase_sd.errors import ModelError, SettingError
from erase_sd.mini import WEIGHTS
from erase_sd.models.presets import resolve
from erase_sd.scoring.classes import REMEDY, checked_classes

NAMES = ["person", "dog"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning"
)  # still MobileCLIP's format


class Script(nn.Module):
    """A text encoder of token ids, as the TorchScript file of MobileCLIP is one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(600, 512)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids % 600).mean(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose features are as wide as those of ViT-B/32."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    text = tower | {"vocab_size": len(tokenizer), "max_position_embeddings": 32,
                    "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    vision = tower | {"image_size": 32, "patch_size": 16}
    for part in (
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)),
        tokenizer,
        CLIPImageProcessor(),
    ):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from transformers import CLIPTokenizer

    from erase_sd.detection import vocabulary

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    tokenizer.save_pretrained(tmp_path / "mobileclip")
    monkeypatch.setattr(vocabulary, "CLIP_VOCABULARY", len(tokenizer))
    torch.manual_seed(0)
    path = tmp_path / "mobileclip" / "mobileclip_blt.ts"
    torch.jit.script(Script()).save(str(path))
    return path


def write(path: Path, architecture: str, **attributes: Any) -> Any:
    """A random model of ultralytics, saved as its trainer does; returns the model."""
    from ultralytics.nn import tasks

    kind = {"yoloe": tasks.YOLOESegModel, "world": tasks.WorldModel}.get(
        next((word for word in ("yoloe", "world") if word in architecture), ""),
        tasks.DetectionModel,
    )
    torch.manual_seed(1)
    model = kind(architecture, nc=len(NAMES), verbose=False).eval()
    model.names = dict(enumerate(NAMES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.02, 0.2)
    for name, value in attributes.items():
        setattr(model, name, value)
    torch.save({"model": copy.deepcopy(model).half(), "ema": None}, path)
    return model.half().float()


def unit(rows: int) -> torch.Tensor:
    return nn.functional.normalize(
        torch.randn(1, rows, 512, generator=torch.manual_seed(3)), dim=-1
    )


@pytest.mark.parametrize(
    "architecture", ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov8n-worldv2.yaml"]
)
def test_a_file_gives_the_boxes_of_ultralytics_own_model(tmp_path: Path, architecture: str) -> None:
    own = {"txt_feats": unit(2).half()} if "world" in architecture else {}
    model = write(tmp_path / "x.pt", architecture, **own)
    detector = Detector(tmp_path / "x.pt")
    assert detector.names == NAMES and detector.kind.startswith(architecture.removesuffix(".yaml"))
    if own:
        model.txt_feats = own["txt_feats"].float()
        model.model[-1].nc = len(NAMES)
    if model.end2end or getattr(model.model[-1], "one2one_cv2", None) is not None:
        model.end2end = False
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(detector.device)
    with torch.no_grad():
        [boxes], expected = detector.model(x), model.to(detector.device)(x)[0]
    assert torch.allclose(boxes, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (90, 150, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_any_word_is_a_class_of_yolo_world_once_its_text_encoder_is_named(
    tmp_path: Path, clip: Path, picture: Path
) -> None:
    from erase_sd.models.text_encoder import load_clip

    own = load_clip(clip)
    stored = own.encode_texts(own.tokens(NAMES))[0][None]
    write(tmp_path / "world.pt", "yolov8n-world.yaml", txt_feats=stored)
    answer = detect(tmp_path / "world.pt", [picture], ["golf ball"], text_encoder=clip)
    assert answer.names == (*NAMES, "golf ball")
    assert answer.kind == "yolov8n-world open-vocabulary"
    with detector_kept():
        for words in (["golf ball"], ["kite"]):
            names = detect(tmp_path / "world.pt", [picture], words, text_encoder=clip).names
            assert names == (*NAMES, *words)
    detector = Detector(tmp_path / "world.pt", ["golf ball", "dog"], clip)
    expected = own.encode_texts(own.tokens([*NAMES, "golf ball"]))[0]
    assert torch.allclose(detector.model.model.txt_feats[0], expected, atol=1e-5)


def test_words_of_an_open_vocabulary_are_known_before_the_work_begins(
    tmp_path: Path, clip: Path
) -> None:
    from erase_sd.models.text_encoder import load_clip

    own = load_clip(clip)
    stored = own.encode_texts(own.tokens(NAMES))[0][None]
    write(tmp_path / "world.pt", "yolov8n-world.yaml", txt_feats=stored)
    ball, detector = [Concept("ball")], tmp_path / "world.pt"
    models = resolve(detector=detector, detector_text=clip)
    assert checked_classes(models, ball, ["golf ball"]) == {"ball": "golf ball"}
    message = "detector_text: golf ball: not in the detector's file"
    with pytest.raises(SettingError, match=message) as error:
        checked_classes(resolve(detector=detector), ball, ["golf ball"])
    assert REMEDY not in str(error.value)


def test_yoloe_takes_words_from_a_script_that_the_user_names(tmp_path: Path, script: Path) -> None:
    model = write(tmp_path / "yoloe.pt", "yoloe-11n-seg.yaml")
    detector = Detector(tmp_path / "yoloe.pt", ["golf ball"], script)
    assert detector.names == ["golf ball"] and detector.kind == "yoloe-11n-seg open-vocabulary"
    from erase_sd.detection.vocabulary import _script_features

    with torch.no_grad():
        pe = model.model[-1].get_tpe(_script_features(["golf ball"], script)[None])
    assert torch.allclose(detector.model.model.pe, pe, atol=1e-4)
    with torch.no_grad():
        [boxes] = detector.model(torch.rand(1, 3, 64, 64).to(detector.device))
    assert boxes.shape == (1, 5, 84)  # without the coefficients of masks


def test_what_a_vocabulary_lacks_is_one_line(tmp_path: Path, clip: Path, script: Path) -> None:
    world, yoloe = tmp_path / "world.pt", tmp_path / "yoloe.pt"
    write(world, "yolov8n-worldv2.yaml", txt_feats=unit(2))
    write(yoloe, "yoloe-v8n-seg.yaml")
    assert Detector(world, ["dog"]).names == NAMES  # its file has the embedding
    for path, encoder, kind, message in (
        (
            world,
            None,
            SettingError,
            "golf ball: not in the detector's file, an open-.*clip-vit-base",
        ),
        (yoloe, None, SettingError, "golf ball: not in the detector's file, .* mobileclip_blt.ts"),
        (world, clip, ModelError, "not the detector's text encoder: the similarity .* is -?0.0"),
        (world, script, ModelError, "needs a folder or hub id of openai/clip-vit-base-patch32"),
        (yoloe, clip, ModelError, "needs mobileclip_blt.ts"),
        (
            yoloe,
            world,
            ModelError,
            "needs the tokenizer of a CLIP beside it, with 943 tokens, got 2",
        ),
    ):
        with pytest.raises(kind, match=message) as caught:
            Detector(path, ["golf ball"], encoder)
        assert caught.value.field == "detector_text" and "\n" not in str(caught.value)


def test_a_script_is_never_run_unless_it_is_named(tmp_path: Path, script: Path) -> None:
    import shutil

    write(tmp_path / "yoloe.pt", "yoloe-11n-seg.yaml")
    for file in script.parent.iterdir():
        shutil.copy(file, tmp_path)
    with pytest.raises(SettingError):
        Detector(tmp_path / "yoloe.pt", ["golf ball"])


def test_no_text_model_of_ultralytics_is_imported(tmp_path: Path) -> None:
    """Its import would install a package and download weights."""
    write(tmp_path / "world.pt", "yolov8n-worldv2.yaml", txt_feats=unit(2))
    Detector(tmp_path / "world.pt")
    assert "ultralytics.nn.text_model" not in sys.modules


def test_an_architecture_that_ultralytics_does_not_know_is_one_line(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.names, model.yaml["yaml_file"] = dict(enumerate(NAMES)), "yolov8n-worldv3.yaml"
    torch.save({"model": model, "ema": None}, tmp_path / "x.pt")
    with pytest.raises(
        ModelError, match=r"x\.pt: .*; needs YOLOv5 n, s, .* YOLOv8, 11, 12, 26"
    ) as caught:
        Detector(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
