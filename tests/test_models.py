"""Stable Diffusion 1, 2 and XL on tiny real classes: what each U-Net reads is what is unlearned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import erase_sd
from erase_sd.data.concept import Concept
from erase_sd.errors import EraseError, ModelError, SettingError
from erase_sd.generation import stage as generation
from erase_sd.models import pipeline, presets
from erase_sd.models.clip import Tap
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip, text_encoders
from erase_sd.run import Run
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

QUICK: dict[str, Any] = {
    "concepts": (Concept("apple"),), "steps": 4, "validate_every": 2, "forget_batch": 8,
    "retain_batch": 8, "rate": 1e-2, "retain_floor": 0.0,
}  # fmt: skip


def clip_of(folder: Path, tiny: Models, layers: int, projection: int, pad: str) -> Path:
    """A CLIP of its own: `layers` text layers and a tokenizer that pads with `pad`."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    base = CLIPModel.from_pretrained(tiny.clips[0])
    config = base.config
    config.text_config.num_hidden_layers = layers
    config.projection_dim = config.text_config.projection_dim = projection
    config.vision_config.projection_dim = projection
    torch.manual_seed(layers)
    model = CLIPModel(config)
    with torch.no_grad():  # a fresh projection gives nearly nothing
        model.text_projection.weight.normal_()
    tokenizer = CLIPTokenizer.from_pretrained(tiny.clips[0], pad_token=pad)
    for part in (model, tokenizer, CLIPImageProcessor.from_pretrained(tiny.clips[0])):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd2(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """As SD 2.1 is: CLIP's text tower less its last layer, padded with `!`."""
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
    """As SDXL is: two encoders side by side, and the pooled output of the second."""
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


def test_each_pipeline_names_the_states_its_unet_reads(
    tiny: Models, sd2: Models, sdxl: Models
) -> None:
    taps = [[e.taps for e in text_encoders(m.folder)] for m in (tiny, sd2, sdxl)]
    assert taps == [
        [(Tap(2, True),)],
        [(Tap(2, True),)],
        [(Tap(1, False),), (Tap(2, False), Tap(3, True))],
    ]


@pytest.mark.parametrize("kind", ["tiny", "sd2", "sdxl"])
def test_what_is_unlearned_is_what_the_pipeline_itself_gives_its_unet(
    kind: str, request: pytest.FixtureRequest
) -> None:
    models: Models = request.getfixturevalue(kind)
    texts = ["a red apple in a park", "a dog"]
    pipe = pipeline.open_pipeline(models.folder)
    ours = pipeline.embed(pipe, texts)
    theirs = pipe.encode_prompt(
        prompt=texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(ours["prompt_embeds"], theirs[0])
    states = []
    for number, encoder in enumerate(text_encoders(models.folder)):
        clip = load_clip(models.clip_folder(number), encoder)
        states.append(clip.encode_texts(clip.tokens(texts))[1][..., :32])
    assert torch.allclose(torch.cat(states, -1), theirs[0], atol=1e-5)
    if kind == "sdxl":
        assert torch.equal(ours["pooled_prompt_embeds"], theirs[2])


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_other_pipelines_go_from_pairs_to_images(kind: str, request: pytest.FixtureRequest) -> None:
    models: Models = request.getfixturevalue(kind)
    run = Run(Path("runs/apple"))
    unlearn(Settings(**QUICK), models, run)
    Path("apple.txt").write_text("an apple on a table\n")
    rows = generation.generate([Path("apple.txt")], generation.Settings(steps=2), models, run)
    assert len({row["sha256"] for row in rows}) == 2
    own, pipe = erase_sd.load(run.folder), pipeline.open_pipeline(models.folder)
    before = pipeline.embed(pipe, ["an apple", "a dog"])
    erased = {e.name: erase_sd.load(run.folder, e.name) for e in text_encoders(models.folder)}
    pipeline.swap(pipe, erased)
    after = pipeline.embed(pipe, ["an apple", "a dog"])
    assert own.config.num_hidden_layers == pipe.text_encoder.config.num_hidden_layers
    for name, states in before.items():
        assert states.shape == after[name].shape
        parts = (t.tensor_split(len(erased), -1) for t in (states, after[name]))
        assert not any(torch.equal(then, now) for then, now in zip(*parts, strict=True))


def test_the_second_encoders_projection_is_the_pipelines_own(sdxl: Models) -> None:
    run = Run(Path("runs/apple"))
    unlearn(Settings(**QUICK), sdxl, run)
    pipe = pipeline.open_pipeline(sdxl.folder)
    erased: Any = erase_sd.load(run.folder, "text_encoder_2")
    assert torch.equal(erased.text_projection.weight, pipe.text_encoder_2.text_projection.weight)
    with pytest.raises(EraseError, match=r"has no text_encoder_3; it has text_encoder, text_enc"):
        erase_sd.load(run.folder, "text_encoder_3")


def test_an_interrupted_second_encoder_goes_on_to_the_same_weights(sdxl: Models) -> None:
    def stop(step: int, of: int, terms: dict[str, float]) -> None:
        seen.append(step)
        if seen == [1, 2, 3, 4, 1, 2, 3]:
            raise KeyboardInterrupt

    seen: list[int] = []
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(Settings(**QUICK), sdxl, whole)
    with pytest.raises(KeyboardInterrupt):
        unlearn(Settings(**QUICK), sdxl, broken, stop)
    unlearn(Settings(**QUICK), sdxl, broken)
    hashes = [json.loads((r.folder / "erased/erase.json").read_text()) for r in (whole, broken)]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]
    assert not list(broken.folder.glob("checkpoint*"))


def other_config(folder: Path, tmp_path: Path, part: str, **changes: Any) -> Path:
    """A copy of a model folder with another config of one part."""
    import shutil

    copy = tmp_path / "other"
    shutil.copytree(folder, copy)
    path = copy / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; needs one of"),
        ("text_encoder/config.json", {"model_type": "t5"}, "is a t5; needs a clip_text_model"),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "hidden_act is gelu, CLIP has quick"),
        ("text_encoder/config.json", {"num_hidden_layers": 9}, "9 layers, CLIP has 2"),
        (
            "text_encoder/config.json",
            {"auto_map": {"AutoModel": "x.Y"}},
            "code of its own; refused",
        ),
    ],
)
def test_a_foreign_architecture_is_one_line_before_any_work(
    tiny: Models, tmp_path: Path, part: str, changes: dict[str, Any], says: str
) -> None:
    models = dataclasses.replace(tiny, model=other_config(tiny.folder, tmp_path, part, **changes))
    with pytest.raises(ModelError, match=says) as caught:
        unlearn(Settings(**QUICK), models, Run(Path("runs/a")))
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_missing_clip_of_two_is_named(sdxl: Models) -> None:
    with pytest.raises(SettingError, match="has 2 text encoders, got 1 CLIP"):
        unlearn(Settings(**QUICK), dataclasses.replace(sdxl, clips=sdxl.clips[:1]), Run(Path("a")))


def test_a_unet_of_another_width_is_refused(tiny: Models, tmp_path: Path) -> None:
    folder = other_config(tiny.folder, tmp_path, "unet/config.json", cross_attention_dim=48)
    with pytest.raises(ModelError):
        pipeline.open_pipeline(folder)


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no folder at all"])
def test_a_model_that_is_nowhere_is_one_line_and_leaves_nothing(tiny: Models, source: str) -> None:
    models = dataclasses.replace(tiny, model=source)
    with pytest.raises(ModelError, match=f"--model {source}: ") as caught:
        unlearn(Settings(**QUICK), models, Run(Path("runs/a")))
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_presets_name_a_clip_for_each_encoder_and_keep_what_is_given() -> None:
    assert {name: len(models.clips) for name, models in presets.HUB.items()} == {
        "sd14": 1, "sd15": 1, "sd21": 1, "sdxl": 2,
    }  # fmt: skip
    models = presets.resolve("sdxl", clip=["a/b", "c/d"], data="pairs", revision="v1")
    assert (models.clips, models.data, models.revision) == (("a/b", "c/d"), Path("pairs"), "v1")
    assert presets.resolve(**models.given) == models
    with pytest.raises(SettingError, match="--detector: needs a YOLOv5 file"):
        models.detector_file()
    with pytest.raises(SettingError, match="unknown; needs one of mini, sd14"):
        presets.resolve("sd3")


def test_later_stages_take_the_models_of_the_run(tiny: Models) -> None:
    erase_sd.unlearn(
        "apple", model=tiny.model, clip=tiny.clips[0], data=tiny.data, steps=2, validate_every=2,
        retain_floor=0.0,
    )  # fmt: skip
    Path("apple.txt").write_text("an apple on a table\n")
    folder = erase_sd.generate("apple.txt", steps=2)
    images = json.loads((folder / "images.jsonl").read_text().splitlines()[0])
    assert (folder / images["file"]).is_file()
    models = presets.of_run(Run(folder))
    assert models.folder == tiny.model and models.given["preset"] == "mini"


def test_out_of_memory_draws_both_arms_again_in_smaller_batches(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, draw = Run(Path("runs/apple")), generation.draw
    unlearn(Settings(**QUICK), tiny, run)
    Path("apple.txt").write_text("".join(f"an apple number {i}\n" for i in range(4)))

    def small(pipe: Any, prompts: list[str], *rest: Any) -> Any:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("no room")
        return draw(pipe, prompts, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "draw", small)
        shrunk = generation.generate(
            [Path("apple.txt")], generation.Settings(steps=2, batch=4), tiny, run
        )
    assert "begins again with 2 images a batch" in capsys.readouterr().err
    assert run.manifest["stages"]["generate"]["batch"] == 2
    asked = generation.generate(
        [Path("apple.txt")], generation.Settings(steps=2, batch=2), tiny, run
    )
    assert [row["sha256"] for row in shrunk] == [row["sha256"] for row in asked]


def test_out_of_memory_unlearns_on_with_smaller_batches_and_says_so(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from erase_sd.methods.anchored import AnchoredCLIPErase

    loss = AnchoredCLIPErase.loss

    def small(method: Any, student: Any, batch: Any) -> Any:
        if len(batch.forget.ids) > 4:
            raise torch.OutOfMemoryError("no room")
        return loss(method, student, batch)

    monkeypatch.setattr(AnchoredCLIPErase, "loss", small)
    run = Run(Path("runs/apple"))
    unlearn(Settings(**QUICK), tiny, run)
    assert "goes on with 4 forget and 4 retain captions" in capsys.readouterr().err
    assert run.manifest["stages"]["unlearn"]["batches"] == [4, 4]
    monkeypatch.setattr(
        AnchoredCLIPErase, "loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(ModelError, match="out of memory with the smallest batches"):
        unlearn(Settings(**QUICK), tiny, Run(Path("runs/none")))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_lower_precision_is_asked_for_by_name_and_stays_close(tiny: Models, dtype: str) -> None:
    run = Run(Path("runs/apple"))
    measures = unlearn(Settings(**QUICK, dtype=dtype), tiny, run)
    exact = unlearn(Settings(**QUICK), tiny, Run(Path("runs/exact")))
    assert measures["retain"] == pytest.approx(exact["retain"], abs=0.05)
    assert (measures == exact) is (dtype == "fp32")
    with pytest.raises(SettingError, match="--dtype fp8: unknown; needs one of auto, fp32, bf16"):
        generation.Settings(dtype="fp8")
