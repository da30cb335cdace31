"""Stable Diffusion 1, 2 and XL as tiny real classes: what each U-Net reads is what is unlearned."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from erase_sd.data.concept import Concept
from erase_sd.errors import EraseError, ModelError, SettingError
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models import erased, pipeline, sampling
from erase_sd.models.clip import Tap
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

QUICK = UnlearnSettings(
    concepts=(Concept("apple"),), steps=4, validate_every=2, forget_batch=8, retain_batch=8,
    learning_rate=1e-2, retain_floor=0.0,
)  # fmt: skip


def clip_of(folder: Path, tiny: Models, layers: int, projection: int, pad: str) -> Path:
    """A CLIP with `layers` text layers, and a tokenizer that pads with `pad`."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    config = CLIPModel.from_pretrained(tiny.clips[0]).config
    config.text_config.num_hidden_layers = layers
    config.projection_dim = config.text_config.projection_dim = projection
    config.vision_config.projection_dim = projection
    torch.manual_seed(layers)
    model = CLIPModel(config)
    with torch.no_grad():  # a fresh projection is nearly zero
        model.text_projection.weight.normal_()
    tokenizer = CLIPTokenizer.from_pretrained(tiny.clips[0], pad_token=pad)
    for component in (model, tokenizer, CLIPImageProcessor.from_pretrained(tiny.clips[0])):
        component.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd2(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Like SD 2.1: CLIP's text tower without its last layer, padded with `!`."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd2")
    clip = clip_of(folder / "clip", tiny, 3, 16, "!")
    config = CLIPTextConfig.from_pretrained(clip, num_hidden_layers=2)
    StableDiffusionPipeline.from_pretrained(
        tiny.model, tokenizer=CLIPTokenizer.from_pretrained(clip),
        text_encoder=CLIPTextModel.from_pretrained(clip, config=config), safety_checker=None,
    ).save_pretrained(folder / "sd")  # fmt: skip
    return dataclasses.replace(tiny, model=folder / "sd", clips=(clip,))


@pytest.fixture(scope="module")
def sdxl(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Like SDXL: two encoders side by side, and the pooled output of the second."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sdxl")
    clips = (tiny.clips[0], clip_of(folder / "clip", tiny, 3, 24, "!"))
    base = StableDiffusionPipeline.from_pretrained(tiny.model, safety_checker=None)
    torch.manual_seed(5)
    StableDiffusionXLPipeline(
        vae=base.vae, scheduler=base.scheduler, text_encoder=CLIPTextModel.from_pretrained(clips[0]),
        tokenizer=CLIPTokenizer.from_pretrained(clips[0]),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(clips[1]),
        tokenizer_2=CLIPTokenizer.from_pretrained(clips[1]),
        unet=UNet2DConditionModel.from_config(
            base.unet.config, cross_attention_dim=64, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
    ).save_pretrained(folder / "sd")  # fmt: skip
    return dataclasses.replace(tiny, model=folder / "sd", clips=clips)


def test_each_pipelines_taps_are_the_hidden_states_its_unet_reads(
    tiny: Models, sd2: Models, sdxl: Models
) -> None:
    taps = [[e.taps for e in text_encoders(m.folder)] for m in (tiny, sd2, sdxl)]
    assert taps == [
        [(Tap(2, True),)],
        [(Tap(2, True),)],
        [(Tap(1, False),), (Tap(2, False), Tap(3, True))],
    ]


@pytest.mark.parametrize("kind", ["tiny", "sd2", "sdxl"])
def test_embeddings_and_unlearned_hidden_states_are_those_of_the_pipeline_itself(
    kind: str, request: pytest.FixtureRequest
) -> None:
    models: Models = request.getfixturevalue(kind)
    texts = ["a red apple in a park", "a dog"]
    pipe = pipeline.open_pipeline(models.folder, "fp32")
    ours = pipeline.embed(pipe, texts)
    theirs = pipe.encode_prompt(
        prompt=texts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(ours["prompt_embeds"], theirs[0])
    hidden_states = []
    for number, encoder in enumerate(text_encoders(models.folder)):
        clip = load_clip(models.clip_folder(number), encoder)
        hidden_states.append(clip.encode_texts(clip.tokens(texts))[1][..., :32])
    assert torch.allclose(torch.cat(hidden_states, -1), theirs[0].cpu(), atol=1e-5)
    if kind == "sdxl":
        assert torch.equal(ours["pooled_prompt_embeds"], theirs[2])


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_other_pipelines_run_from_pairs_to_images(
    kind: str, request: pytest.FixtureRequest
) -> None:
    models: Models = request.getfixturevalue(kind)
    run = Run(Path("runs/apple"))
    unlearn(QUICK, models, run)
    Path("apple.txt").write_text("an apple on a table\n")
    images = generate([Path("apple.txt")], GenerateSettings(steps=2), models, run)
    assert len({image.sha256 for image in images}) == 2
    pipe = pipeline.open_pipeline(models.folder, "fp32")
    before = pipeline.embed(pipe, ["an apple", "a dog"])
    encoders = {e.name: erased.load(run.folder, e.name) for e in text_encoders(models.folder)}
    assert all(run.training(name) for name in encoders)
    layers = pipe.text_encoder.config.num_hidden_layers
    assert encoders["text_encoder"].config.num_hidden_layers == layers
    pipeline.swap(pipe, encoders)
    after = pipeline.embed(pipe, ["an apple", "a dog"])
    for name, original in before.items():
        assert original.shape == after[name].shape
        halves = (t.tensor_split(len(encoders), -1) for t in (original, after[name]))
        assert not any(torch.equal(old, new) for old, new in zip(*halves, strict=True))


def test_the_second_encoder_keeps_the_projection_of_the_pipeline(sdxl: Models) -> None:
    run = Run(Path("runs/apple"))
    unlearn(QUICK, sdxl, run)
    pipe = pipeline.open_pipeline(sdxl.folder, "fp32")
    second: Any = erased.load(run.folder, "text_encoder_2")
    own = pipe.text_encoder_2.text_projection.weight.cpu()
    assert torch.equal(second.text_projection.weight, own)
    with pytest.raises(EraseError, match=r"has no text_encoder_3; it has text_encoder, text_enc"):
        erased.load(run.folder, "text_encoder_3")


def test_a_resumed_second_encoder_ends_with_the_same_weights(sdxl: Models) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        steps.append(done)
        if steps == [1, 2, 3, 4, 1, 2, 3]:
            raise KeyboardInterrupt

    steps: list[int] = []
    whole, interrupted = Run(Path("runs/whole")), Run(Path("runs/interrupted"))
    unlearn(QUICK, sdxl, whole)
    with pytest.raises(KeyboardInterrupt):
        unlearn(QUICK, sdxl, interrupted, interrupt)
    unlearn(QUICK, sdxl, interrupted)
    assert whole.erasure().weights_sha256 == interrupted.erasure().weights_sha256
    assert interrupted.unlearned().encoders["text_encoder_2"].resumed_at == 2
    assert not list(interrupted.folder.glob("checkpoint*"))


def with_config(folder: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    """A copy of a model folder with changes in one configuration file."""
    copy = tmp_path / "other"
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "QwenImagePipeline"},
            "is a QwenImagePipeline; needs one of",
        ),
        ("text_encoder/config.json", {"model_type": "t5"}, "is a t5; needs a clip_text_model"),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "hidden_act is gelu, CLIP has quick"),
        ("text_encoder/config.json", {"num_hidden_layers": 9}, "9 layers, CLIP has 2"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "x.Y"}}, "its own; refused"),
    ],
)
def test_a_foreign_architecture_is_one_line_before_any_work(
    tiny: Models, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    models = dataclasses.replace(tiny, model=with_config(tiny.folder, tmp_path, file, **changes))
    with pytest.raises(ModelError, match=message) as caught:
        unlearn(QUICK, models, Run(Path("runs/a")))
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_images_do_not_depend_on_an_installed_watermarker(
    sdxl: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl as xl

    monkeypatch.setattr(xl, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(xl, "StableDiffusionXLWatermarker", object, raising=False)
    assert pipeline.open_pipeline(sdxl.folder).watermark is None


@pytest.mark.filterwarnings("ignore:.upcast_vae. is deprecated")  # which diffusers itself calls
def test_images_are_generated_after_memory_ran_out_in_a_decoder_that_runs_in_fp32(
    sdxl: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SDXL's own in fp16: the pipeline casts it to fp32 before it decodes, and back only afterwards."""
    from diffusers import AutoencoderKL

    pipe = pipeline.open_pipeline(sdxl.folder, "fp16")
    pipe.vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=8, force_upcast=True
    ).to(pipe.device, torch.float16)  # fmt: skip
    decode, precisions = pipe.vae.decode, []

    def full(latents: Any, **options: Any) -> Any:
        precisions.append(pipe.vae.dtype)
        if len(precisions) == 1:
            raise torch.OutOfMemoryError
        return decode(latents, **options)

    monkeypatch.setattr(pipe.vae, "decode", full)
    with pytest.raises(torch.OutOfMemoryError):
        sampling.generate_batch(pipe, ["a dog", "a cat"], [0, 1], 1, 2.0)
    assert len(sampling.generate_batch(pipe, ["a dog"], [0], 1, 2.0)) == 1
    assert pipe.vae.dtype == torch.float16
    assert precisions == [torch.float32] * 2


def test_a_missing_second_clip_is_named(sdxl: Models) -> None:
    with pytest.raises(SettingError, match=r"clip: .* has 2 text encoders, got 1 CLIP"):
        unlearn(QUICK, dataclasses.replace(sdxl, clips=sdxl.clips[:1]), Run(Path("a")))
    with pytest.raises(ModelError, match="text_encoder_2"):  # each is compared with its own
        unlearn(QUICK, dataclasses.replace(sdxl, clips=sdxl.clips[:1] * 2), Run(Path("a")))
    assert not Path("a").exists()


def test_a_unet_of_another_width_is_refused(tiny: Models, tmp_path: Path) -> None:
    folder = with_config(tiny.folder, tmp_path, "unet/config.json", cross_attention_dim=48)
    with pytest.raises(ModelError):
        pipeline.open_pipeline(folder)


def test_an_encoder_of_another_depth_is_not_swapped_in(tiny: Models, sdxl: Models) -> None:
    pipe = pipeline.open_pipeline(tiny.folder, "fp32")
    own, other = pipe.text_encoder, pipeline.open_pipeline(sdxl.folder, "fp32").text_encoder_2
    with pytest.raises(ModelError, match=r"text_encoder: num_hidden_layers is 3, .* own has 2"):
        pipeline.swap(pipe, {"text_encoder": other})
    assert pipe.text_encoder is own


def test_an_encoder_beyond_the_pipelines_precision_is_not_swapped_in(
    tiny: Models, huge_run: Run
) -> None:
    pipe = pipeline.open_pipeline(tiny.folder, "fp16")
    own, huge = pipe.text_encoder, erased.load(huge_run.folder)
    with pytest.raises(ModelError, match=r"text_encoder: .*norm.bias is not finite in float16"):
        pipeline.swap(pipe, {"text_encoder": huge})
    assert pipe.text_encoder is own and huge.dtype == torch.float32


def test_the_pipeline_reads_prompts_up_to_its_tokenizers_length(tiny: Models) -> None:
    limit = pipeline.pipeline_token_limit(pipeline.open_pipeline(tiny.folder, "fp32"))
    assert limit.limit == 32
    assert limit.fits("dog " * (limit.limit - 2)) and not limit.fits("dog " * (limit.limit - 1))


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no folder at all"])
def test_an_unknown_model_is_one_line_and_leaves_no_run(tiny: Models, source: str) -> None:
    models = dataclasses.replace(tiny, model=source)
    with pytest.raises(ModelError, match=f"model {source}: ") as caught:
        unlearn(QUICK, models, Run(Path("runs/a")))
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()
