"""Full-size Stable Diffusion with random weights, in the hub's layout: `pytest -m slow -n 0`.

The trained weights are not available here, so these tests show that every shape, name and layer fits,
and nothing about quality.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from erase_sd.data.concept import Concept
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.mini.dataset import write_dataset
from erase_sd.models import erased, pipeline
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip, load_text_encoder
from erase_sd.run import Run
from erase_sd.scoring.stage import score
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

SHARED = Path(__file__).parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs CLIP's tokenizer from ../shared/data"),
]

VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
         "num_hidden_layers": 12, "projection_dim": 768, "hidden_act": "quick_gelu"}  # fmt: skip
VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
         "num_hidden_layers": 24, "projection_dim": 1024, "hidden_act": "gelu"}  # fmt: skip
VIT_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
         "num_hidden_layers": 32, "projection_dim": 1280, "hidden_act": "gelu"}  # fmt: skip
# The image towers are small, except for SD 1.5: no U-Net reads them.
SMALL_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
                "num_hidden_layers": 1, "image_size": 224, "patch_size": 32}  # fmt: skip
VIT_L_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                "num_hidden_layers": 24, "image_size": 224, "patch_size": 14}  # fmt: skip
CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD1_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SD2_UNET: dict[str, Any] = {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}  # fmt: skip
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True, "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", CROSS[0], CROSS[0]),
    "up_block_types": (CROSS[1], CROSS[1], "UpBlock2D"), "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Gigabytes of weights, gone after each test."""
    torch.manual_seed(0)
    yield tmp_path
    shutil.rmtree(tmp_path / "sd", ignore_errors=True)


def clip_in(folder: Path, text: dict[str, Any], vision: dict[str, Any], pad: str) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    size = text["projection_dim"]
    config = CLIPConfig(
        text_config=text | {"eos_token_id": 2}, vision_config=vision | {"projection_dim": size},
        projection_dim=size,
    )  # fmt: skip
    model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    tokenizer = CLIPTokenizer.from_pretrained(SHARED / "clip-tokenizer", pad_token=pad)
    tokenizer.model_max_length = 77
    for component in (model, tokenizer, CLIPImageProcessor()):
        component.save_pretrained(folder)
    return folder


def pipeline_in(
    folder: Path, kind: str, clips: list[Path], layers: list[int], unet: dict[str, Any]
) -> Path:
    import diffusers
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    components: dict[str, Any] = {}
    for number, (clip, depth) in enumerate(zip(clips, layers, strict=True)):
        config = CLIPTextConfig.from_pretrained(clip, num_hidden_layers=depth)
        suffix, text = ("_2", CLIPTextModelWithProjection) if number else ("", CLIPTextModel)
        components |= {
            f"tokenizer{suffix}": CLIPTokenizer.from_pretrained(clip),
            f"text_encoder{suffix}": text.from_pretrained(clip, config=config),
        }
    if kind == "StableDiffusionPipeline":
        components |= {"safety_checker": None, "feature_extractor": None}
    torch.set_default_dtype(torch.bfloat16)  # SDXL's U-Net has 2.6 billion weights
    try:
        unet_of_size = diffusers.UNet2DConditionModel(**unet)
    finally:
        torch.set_default_dtype(torch.float32)
    getattr(diffusers, kind)(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=unet["sample_size"] * 8,
        ),
        unet=unet_of_size,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        **components,
    ).save_pretrained(folder)  # fmt: skip
    return folder


# With so low a learning rate, random weights stay above the retain floor and are not rolled back.
QUICK = UnlearnSettings(
    concepts=(Concept("apple"),), steps=1, validate_every=1, forget_batch=2, retain_batch=2,
    learning_rate=1e-6,
)  # fmt: skip


def pairs_in(folder: Path) -> Path:
    folder.mkdir()
    write_dataset(folder, 60)
    return folder


def test_stable_diffusion_1_5_runs_from_pairs_to_scores(folder: Path) -> None:
    clip = clip_in(folder / "clip", VIT_L, VIT_L_VISION, "<|endoftext|>")
    sd = pipeline_in(folder / "sd", "StableDiffusionPipeline", [clip], [12], SD1_UNET)
    detector = SHARED / "yolov5" / "yolov5n.pt"
    models = Models(sd, (clip,), pairs_in(folder / "pairs"), detector)
    run = Run(folder / "runs" / "apple")
    unlearn(QUICK, models, run)
    assert sum(p.numel() for p in erased.load(run.folder).parameters()) == 123_060_480
    (folder / "apple.txt").write_text("an apple next to a dog\n")
    images = generate([folder / "apple.txt"], GenerateSettings(steps=2), models, run)
    assert [image.size for image in images] == [512, 512]
    # Random weights hardly depend on their text encoder, so the encoders are compared, not the pixels.
    own = load_text_encoder(sd / "text_encoder").state_dict()
    unlearned = erased.load(run.folder).state_dict()
    assert own.keys() == unlearned.keys()
    assert any(not torch.equal(own[name], unlearned[name]) for name in own)
    score(run, models)
    assert {rate.concept for rate in run.scores().rates} == {"apple"}


@pytest.mark.parametrize(
    ("kind", "texts", "layers", "unet", "width"),
    [
        ("StableDiffusionPipeline", [VIT_H], [23], SD2_UNET, 1024),
        ("StableDiffusionXLPipeline", [VIT_L, VIT_G], [12, 32], SDXL_UNET, 2048),
    ],
    ids=["sd21", "sdxl"],
)
def test_larger_pipelines_load_swap_encoders_and_denoise(
    folder: Path, kind: str, texts: list[Any], layers: list[int], unet: dict[str, Any], width: int
) -> None:
    clips = [clip_in(folder / f"clip{i}", text, SMALL_VISION, "!") for i, text in enumerate(texts)]
    sd = pipeline_in(folder / "sd", kind, clips, layers, unet)
    models = Models(sd, tuple(clips), pairs_in(folder / "pairs"), None)
    run = Run(folder / "runs" / "apple")
    unlearn(QUICK, models, run)
    # bf16 takes half the memory, and a few latents pass every layer. It cannot represent the change of
    # one unlearning step, so the swapped encoders are changed further.
    pipe = pipeline.open_pipeline(sd, "bf16")
    before = pipeline.embed(pipe, ["an apple", "a dog"])
    encoders = {e.name: erased.load(run.folder, e.name) for e in text_encoders(sd)}
    for encoder in encoders.values():
        encoder.get_input_embeddings().weight.data.mul_(1.5)
    pipeline.swap(pipe, encoders)
    after = pipeline.embed(pipe, ["an apple", "a dog"])
    assert after["prompt_embeds"].shape == (2, 77, width)
    assert not torch.equal(before["prompt_embeds"], after["prompt_embeds"])
    extra = {}
    if "pooled_prompt_embeds" in after:
        ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2)
        extra = {"text_embeds": after["pooled_prompt_embeds"], "time_ids": ids}
    with torch.inference_mode():
        noise = pipe.unet(
            torch.randn(2, 4, 16, 16, dtype=torch.bfloat16), 500, after["prompt_embeds"],
            added_cond_kwargs=extra or None,
        ).sample  # fmt: skip
    assert noise.shape == (2, 4, 16, 16)
    assert torch.isfinite(noise).all()


def test_a_full_size_encoder_has_the_hidden_states_of_its_clip(folder: Path) -> None:
    clip = clip_in(folder / "clip", VIT_L, SMALL_VISION, "<|endoftext|>")
    sd = pipeline_in(
        folder / "sd", "StableDiffusionPipeline", [clip], [12],
        SD1_UNET | {"block_out_channels": (32, 32, 32, 32)},
    )  # fmt: skip
    whole, encoder = load_clip(clip), load_clip(clip, text_encoders(sd)[0])
    ids = whole.tokens(["an apple", "two dogs on a beach"])
    assert torch.equal(ids, encoder.tokens(["an apple", "two dogs on a beach"]))
    for a, b in zip(whole.encode_texts(ids), encoder.encode_texts(ids), strict=True):
        assert torch.equal(a, b)
