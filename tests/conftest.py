"""Fixtures: tiny models of the real classes with random weights; each test has its own folder."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, as below

from faulty import PRETEND_CARD, Faults, can_fork, write_table

from erase_sd.data import parses
from erase_sd.detection import detector
from erase_sd.detection.detector import detector_kept
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning import unet_metrics


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pretend-card", action="store_true",
        help="Run all tests on a pretend GPU, on which tensors of two devices do not mix.",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pretend-card"):
        os.environ[PRETEND_CARD] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    _freeze_imports()
    mark = item.get_closest_marker("forks")
    if mark and not can_fork(**mark.kwargs):
        pytest.skip("forks processes, which needs POSIX and, if they use tensors, no GPU")


def _freeze_imports() -> None:
    """Imported modules are left out of garbage collections, which erasures ask for: 0.4 s each."""
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


_frozen = 0
"""Number of modules whose objects were frozen."""


@pytest.fixture(autouse=True)
def isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and caches stay in the test's folder, and nothing uses the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERASE_SD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    """The pretend GPU, if it was asked for."""
    if not request.config.getoption("--pretend-card"):
        yield
        return
    from pretend_card import pretend_card

    with pretend_card():
        yield


@pytest.fixture(autouse=True)
def parses_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text is parsed twice in all tests of a process: each erasure would forget them and end the parser."""
    monkeypatch.setattr(parses, "forget", lambda: None)


@pytest.fixture(autouse=True)
def few_images_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an erasure of a U-Net left is measured on fewer images, in one batch."""
    monkeypatch.setattr(unet_metrics, "MOST", 16)


@pytest.fixture(scope="session", autouse=True)
def detector_stays() -> Iterator[None]:
    """A detector is loaded once in all tests of a process, which takes seconds."""
    with detector_kept():
        yield


@pytest.fixture
def new_detector() -> None:
    """The test starts a process for its detector."""
    detector._kept.end()


@pytest.fixture
def shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the tests that read the whole miniature dataset, which takes seconds to render."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    monkeypatch.setenv("ERASE_SD_CACHE", str(folder / "shared-cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """CLIP, Stable Diffusion, Flickr30K folder and YOLOv5 with a few thousand random weights."""
    import torch
    from diffusers import (
        AutoencoderTiny,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer
    from ultralytics.nn.tasks import DetectionModel

    from erase_sd.data.concept import Concept
    from erase_sd.data.flickr30k import read_flickr30k
    from erase_sd.data.removal import remove_concepts_from
    from erase_sd.mini import WEIGHTS
    from erase_sd.mini.dataset import write_dataset
    from erase_sd.mini.scenes import CLASSES

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": 16,
    }  # fmt: skip
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = tower | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    clip = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=tower | {"image_size": 64, "patch_size": 16},
            projection_dim=16,
        )
    )
    for component in (clip, tokenizer):
        component.save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(folder / "clip")
    StableDiffusionPipeline(
        vae=AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ),
        text_encoder=CLIPTextModel.from_pretrained(folder / "clip"),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32,
            attention_head_dim=2,
        ),
        scheduler=DDIMScheduler(timestep_spacing="trailing", steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "sd")  # fmt: skip
    (folder / "data").mkdir()
    write_dataset(folder / "data", 100)
    captions = [c for item in read_flickr30k(folder / "data").items for c in item.captions]
    remove_concepts_from(
        captions, [Concept("apple")]
    )  # a test's fork would start a parser for them
    detector = DetectionModel("yolov5n.yaml", nc=len(CLASSES), verbose=False)
    save_file(
        {n: t.contiguous() for n, t in detector.state_dict().items() if t.is_floating_point()},
        folder / "detector.safetensors",
        metadata={"architecture": "yolov5n.yaml", "names": json.dumps(CLASSES), "size": "64"},
    )
    return Models(
        folder / "sd", (folder / "clip",), folder / "data", folder / "detector.safetensors"
    )


@pytest.fixture(scope="session")
def erased_once(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `erased_run` is a copy of."""
    import dataclasses

    from erase_sd.data.concept import Concept
    from erase_sd.models import erased
    from erase_sd.models.pipeline_kinds import text_encoders
    from erase_sd.models.text_encoder import load_clip
    from erase_sd.run.records import Origin

    run, concept = Run(tmp_path_factory.mktemp("erased") / "apple"), Concept("apple")
    clip = load_clip(tiny.clip_folder(0), text_encoders(tiny.folder)[0])
    origin = Origin(model=tiny.fingerprint(), clip=(clip.digest,), data="0")
    weights = {n: 1.5 * p.detach() for n, p in clip.model.named_parameters() if "text_model" in n}
    settings = {"method": "cliperase-anchored"}
    entry = {"concepts": [dataclasses.asdict(concept)], "origin": dataclasses.asdict(origin)}
    with run.stage("unlearn", settings, **entry):
        run.update(models=tiny.overrides)
        erased.save(
            run.erased, {"text_encoder": weights}, tiny,
            concepts=[concept], settings=settings, origin=origin, held_out={},
        )  # fmt: skip
    return run.folder


@pytest.fixture
def erased_run(erased_once: Path) -> Run:
    """A run of `tiny` with "apple" erased, as far as later stages can tell; nothing was trained."""
    shutil.copytree(erased_once, "runs/apple")
    return Run(Path("runs/apple"))


@pytest.fixture
def huge_run(tiny: Models, erased_run: Run) -> Run:
    """`erased_run` with weights that half precision cannot hold."""
    from erase_sd.models import erased

    record = erased_run.erasure()
    weights = {
        n if n.startswith("text_model.") else f"text_model.{n}": p.detach().clone()
        for n, p in erased.load(erased_run.folder).named_parameters()
    }
    weights["text_model.final_layer_norm.bias"][0] = 1e5
    erased.save(
        erased_run.erased, {"text_encoder": weights}, tiny,
        concepts=record.concepts, settings=record.settings, origin=record.origin, held_out={},
    )  # fmt: skip
    return erased_run


@pytest.fixture
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for a release of PEFT that is newer than the latest in the package index."""
    import peft
    import transformers.integrations.peft as integration

    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", peft.__version__)


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """Records faults; the test fails at its end if one was not survived."""
    recorded = Faults(request.node)
    yield recorded
    assert not recorded.lost, "\n".join(recorded.lost)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write_table(terminalreporter)
