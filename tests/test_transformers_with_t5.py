"""Stable Diffusion 3 and FLUX.1: their CLIPs are erased, and T5, which is not, is named."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_models import clip_of

from erase_sd.data.concept import Concept
from erase_sd.errors import ModelError, SettingError
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models import apply, erased, lora_export, model_card, pipeline, sampling
from erase_sd.models.clip import Tap
from erase_sd.models.denoiser import open_denoiser
from erase_sd.models.export import export
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

TEXTS = ["a red apple in a park", "a dog"]
QUICK = UnlearnSettings(
    concepts=(Concept("apple"),), steps=2, validate_every=2, forget_batch=8, retain_batch=8,
    retain_floor=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def common(tiny: Models) -> dict[str, Any]:
    """Scheduler, VAE, T5 and its tokenizer."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    torch.manual_seed(3)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "apple", "dog", "in", "park"]
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4), norm_num_groups=1, latent_channels=4, shift_factor=0.1,
            use_quant_conv=False, use_post_quant_conv=False,
        ),
        "t5": T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        "t5_tokenizer": T5TokenizerFast(vocab=[(f"▁{w}", -float(i)) if i > 2 else (w, 0.0) for i, w in enumerate(words)], extra_ids=0),
    }  # fmt: skip


@pytest.fixture(scope="module")
def sd3(tiny: Models, common: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Models:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd3")
    clips = (tiny.clips[0], clip_of(folder / "clip", tiny, 3, 24, "!"))
    torch.manual_seed(4)
    encoders = [CLIPTextModelWithProjection.from_pretrained(clip) for clip in clips]
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=16,
            pooled_projection_dim=16 + 24, out_channels=4, pos_embed_max_size=16,
        ),
        scheduler=common["scheduler"], vae=common["vae"],
        text_encoder=encoders[0], tokenizer=CLIPTokenizer.from_pretrained(clips[0]),
        text_encoder_2=encoders[1], tokenizer_2=CLIPTokenizer.from_pretrained(clips[1]),
        text_encoder_3=common["t5"], tokenizer_3=common["t5_tokenizer"],
    ).save_pretrained(folder / "sd")  # fmt: skip
    return dataclasses.replace(tiny, model=folder / "sd", clips=clips)


@pytest.fixture(scope="module")
def flux(tiny: Models, common: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Models:
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(5)
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=64, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        ),
        scheduler=common["scheduler"], vae=common["vae"],
        text_encoder=CLIPTextModel.from_pretrained(tiny.clips[0]),
        tokenizer=CLIPTokenizer.from_pretrained(tiny.clips[0]),
        text_encoder_2=common["t5"], tokenizer_2=common["t5_tokenizer"],
    ).save_pretrained(folder / "sd")  # fmt: skip
    return dataclasses.replace(tiny, model=folder / "sd")


@pytest.fixture(params=["sd3", "flux"])
def models(request: pytest.FixtureRequest) -> Models:
    own: Models = request.getfixturevalue(request.param)
    return own


def test_the_taps_are_the_hidden_states_that_each_transformer_reads(
    sd3: Models, flux: Models
) -> None:
    assert [e.taps for e in text_encoders(sd3.folder)] == [
        (Tap(1, False), Tap(2, True)), (Tap(2, False), Tap(3, True)),
    ]  # fmt: skip
    assert [e.taps for e in text_encoders(flux.folder)] == [(Tap(2, True),)]


def test_what_is_unlearned_is_what_the_transformer_reads(sd3: Models, flux: Models) -> None:
    """The pooled outputs come from the last tap, the joint hidden states from the first."""
    pipe = pipeline.open_pipeline(sd3.folder, "fp32")
    embeds = pipeline.embed(pipe, TEXTS)
    column = 0
    for folder, encoder in zip(sd3.clips, text_encoders(sd3.folder), strict=True):
        clip = load_clip(Path(folder), encoder)
        text, states = clip.encode_text(clip.tokens(TEXTS), unit=False)
        width = states.shape[-1] // 2
        own = embeds["prompt_embeds"][:, : states.shape[1], column : column + width].cpu()
        assert torch.allclose(own, states[..., :width], atol=1e-5)
        column += width
        del text
    pipe = pipeline.open_pipeline(flux.folder, "fp32")
    clip = load_clip(Path(flux.clips[0]), text_encoders(flux.folder)[0])
    ids = clip.tokens(TEXTS)
    states = clip.encode_text(ids)[1][range(len(TEXTS)), clip.ends(ids)]
    pooled = pipeline.embed(pipe, TEXTS)["pooled_prompt_embeds"].cpu()
    assert torch.allclose(pooled, states, atol=1e-5)


def test_a_run_erases_the_clips_and_says_that_t5_still_knows_the_word(
    models: Models, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prompts = Run(Path("runs/apple")), Path("apple.txt")
    prompts.write_text("a red apple in a park\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "erase_sd"):
        unlearn(QUICK, models, run)
    names = [encoder.name for encoder in text_encoders(models.folder)]
    [line] = [message for message in caplog.messages if "T5EncoderModel" in message]
    assert "T5 still knows the word" in line and "\n" not in line
    assert set(erased.check(run.erased).weights_sha256) == set(names)
    images = generate([prompts], GenerateSettings(steps=2), models, run)
    assert {image.variant for image in images} == {"original", "erased"}
    files = {image.variant: run.image_bytes(image) for image in images}
    assert files["original"] != files["erased"]
    pipe = pipeline.open_pipeline(models.folder, "fp32")
    apply.apply(pipe, run.folder)
    for name in names:
        own, new = getattr(pipe, name).state_dict(), erased.load(run.folder, name).state_dict()
        assert all(torch.equal(own[key].cpu(), new[key]) for key in new if key in own)
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 99.0)
    keys = load_file(export(run, models, "lora") / "apple-lora.safetensors")
    prefixes = {key.split("_text_model")[0] for key in keys}
    assert prefixes == {f"lora_te{number + 1}" for number in range(len(names))}
    card = model_card.card(erased.check(run.erased), models, "")
    kind = json.loads((models.folder / "model_index.json").read_text())["_class_name"]
    assert f"from diffusers import {kind}" in card and "T5 still knows the word" in card


def test_what_needs_a_unet_refuses_a_transformer_in_one_line(models: Models) -> None:
    with pytest.raises(ModelError, match=r"has a transformer; needs a U-Net"):
        open_denoiser(models.folder)
    with pytest.raises(SettingError, match=r"sampler ddim: .* has a scheduler of its own"):
        pipeline.open_pipeline(models.folder, sampler="ddim")


def test_a_folder_without_t5_leaves_nothing_that_knows_the_word(
    sd3: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    folder = tmp_path / "sd"
    shutil.copytree(sd3.folder, folder)
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {name: [None, None]}))
    with caplog.at_level(logging.WARNING, "erase_sd"):
        unlearn(QUICK, dataclasses.replace(sd3, model=folder), Run(Path("runs/apple")))
    assert not [message for message in caplog.messages if "T5" in message]
    pipe = pipeline.open_pipeline(folder, "fp32")
    assert len(sampling.generate_batch(pipe, TEXTS, [1, 2], 1, 2.0)) == 2
