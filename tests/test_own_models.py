"""Models as people have them: half precision only, shards, other tokenizers, added tokens, links."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from erase_sd.checked import hash_folder
from erase_sd.data.concept import Concept
from erase_sd.errors import ModelError, RunError
from erase_sd.models import pipeline
from erase_sd.models.erased import check_base
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.source import fingerprint
from erase_sd.models.text_encoder import load_clip
from erase_sd.models.tokens import token_limit_of
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

TEXTS = ["a red apple in a park", "a dog"]
QUICK = UnlearnSettings(
    concepts=(Concept("apple"),), steps=2, validate_every=2, forget_batch=8, retain_batch=8,
    retain_floor=0.0,
)  # fmt: skip


def half_precision_only(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    pipe.save_pretrained(folder, variant="fp16")


def sharded(folder: Path) -> None:
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    (folder / "text_encoder" / "model.safetensors").unlink()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="40KB")
    assert len(list((folder / "text_encoder").glob("*-of-*.safetensors"))) > 1


def vocabulary_and_merges(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    path.with_name("vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    path.with_name("merges.txt").write_text(f"#version: 0.2\n{merges}")
    path.unlink()


def no_length(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))


def with_projection(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    own = CLIPTextModel.from_pretrained(folder / "text_encoder")
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    encoder = CLIPTextModelWithProjection(config)
    encoder.text_model.load_state_dict(own.state_dict())
    encoder.save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change",
    [half_precision_only, sharded, vocabulary_and_merges, no_length, with_projection],
    ids=lambda change: change.__name__,
)
def test_a_folder_in_another_form_is_read_as_the_same_model(
    tiny: Models, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(tiny.folder, folder)
    change(folder)
    models = dataclasses.replace(tiny, model=folder)
    own, other = (pipeline.open_pipeline(m.folder, "fp32") for m in (tiny, models))
    expected, read = (pipeline.embed(pipe, TEXTS)["prompt_embeds"] for pipe in (own, other))
    assert torch.allclose(read.float(), expected, atol=2e-2)
    assert pipeline.pipeline_token_limit(other).limit == 32
    unlearn(QUICK, models, Run(Path("runs/apple")))
    assert (Path("runs/apple/erased") / "model.safetensors").is_file()


def test_tokens_that_textual_inversion_added_are_kept(tiny: Models, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny.model)
    pipe.load_textual_inversion({"<toy>": torch.arange(32.0)[None] / 32})
    pipe.save_pretrained(tmp_path / "sd")
    models = dataclasses.replace(tiny, model=tmp_path / "sd")
    run = Run(Path("runs/apple"))
    unlearn(QUICK, models, run)
    from safetensors.torch import load_file

    weights = load_file(run.erased / "model.safetensors")
    name = next(n for n in weights if n.endswith("token_embedding.weight"))
    clip = load_clip(tiny.clip_folder(0), text_encoders(tiny.folder)[0])
    assert len(weights[name]) == clip.model.config.text_config.vocab_size + 1
    assert torch.allclose(weights[name][-1], torch.arange(32.0) / 32, atol=1e-2)


def test_the_weights_behind_a_linked_folder_are_part_of_the_fingerprint(
    tiny: Models, tmp_path: Path
) -> None:
    linked, unet = tmp_path / "sd", tmp_path / "unet"
    shutil.copytree(tiny.folder, linked)
    shutil.move(linked / "unet", unet)
    (linked / "unet").symlink_to(unet, target_is_directory=True)
    assert fingerprint(linked) == fingerprint(tiny.folder)
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert fingerprint(linked) != fingerprint(tiny.folder)


def test_hidden_files_and_a_second_copy_of_the_vocabulary_are_not_fingerprinted(
    tiny: Models, tmp_path: Path
) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(tiny.folder, folder)
    (folder / "._model_index.json").write_text("{}")
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    assert fingerprint(folder) == fingerprint(tiny.folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert fingerprint(folder) != fingerprint(tiny.folder)


def add_what_diffusers_downloads(folder: Path) -> None:
    """Of a repository that was fetched for erase-sd, into the same folder of the hub's cache."""
    for name in ("safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json",
                 "safety_checker/config.json", "text_encoder/model.fp16.safetensors",
                 "unet/diffusion_pytorch_model.non_ema.safetensors", "v1-5-pruned.safetensors",
                 "out/erase.json", "out/text_encoder/model.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_files_that_others_add_to_a_model_do_not_make_it_another_one(
    tiny: Models, erased_run: Run, tmp_path: Path
) -> None:
    folder, clip = tmp_path / "sd", tmp_path / "clip"
    shutil.copytree(tiny.folder, folder)
    shutil.copytree(tiny.clip_folder(0), clip)
    add_what_diffusers_downloads(folder)
    (clip / "runs").mkdir()
    for name in ("runs/run.json", "open_clip_model.safetensors"):
        (clip / name).write_text("{}")
    assert fingerprint(clip) == fingerprint(tiny.clip_folder(0))
    models = dataclasses.replace(tiny, model=folder)
    assert models.fingerprint() == tiny.fingerprint()
    assert check_base(erased_run, models).concepts == (Concept("apple"),)
    (folder / "vae" / "config.json").write_text("{}")
    with pytest.raises(RunError, match="with its present weights"):
        check_base(erased_run, models)


def test_a_run_in_the_folder_of_its_model_goes_on(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.folder, tmp_path / "sd")
    monkeypatch.chdir(tmp_path / "sd")
    models, run = dataclasses.replace(tiny, model="."), Run(Path("runs/apple"))
    for _ in range(2):
        unlearn(QUICK, models, run)
    assert check_base(run, models).base.model == "."


def test_a_run_whose_fingerprints_are_of_all_files_goes_on(tiny: Models, tmp_path: Path) -> None:
    """Earlier versions recorded those."""
    folder = tmp_path / "sd"
    shutil.copytree(tiny.folder, folder)
    add_what_diffusers_downloads(folder)
    models, run = dataclasses.replace(tiny, model=folder), Run(Path("runs/apple"))
    unlearn(QUICK, models, run)
    of_all = hash_folder(folder, "*.safetensors", "*.json")
    for path in (run.folder / "run.json", run.erased / "erase.json"):
        path.write_text(path.read_text().replace(models.fingerprint(), of_all))
    assert of_all != models.fingerprint()
    unlearn(QUICK, models, run)  # finished, not refused
    assert check_base(run, models).base.fingerprint == of_all
    (folder / "vae" / "config.json").write_text("{}")
    with pytest.raises(RunError, match="unlearn began with model"):
        unlearn(QUICK, models, run)


def test_the_miniature_tokenizer_is_the_same_in_both_of_its_forms(tmp_path: Path) -> None:
    """Older releases of transformers read `vocab.json` and `merges.txt`."""
    from transformers import CLIPTokenizer

    from erase_sd.mini import WEIGHTS

    whole = WEIGHTS / "sd" / "tokenizer"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(whole / name, tmp_path)
    texts = ["a woman next to an apple in a park", "two dogs, isn't it?", "héllo 42"]
    new, old = (CLIPTokenizer.from_pretrained(f)(texts).input_ids for f in (whole, tmp_path))
    assert new == old
    model = json.loads((whole / "tokenizer.json").read_text())["model"]
    assert json.loads((whole / "vocab.json").read_text(encoding="utf-8")) == model["vocab"]


def test_a_clip_with_tokenizer_json_alone_or_the_two_old_files_is_tokenized_alike(
    tiny: Models, tmp_path: Path
) -> None:
    clip = tmp_path / "clip"
    shutil.copytree(tiny.clip_folder(0), clip / "tokenizer")
    vocabulary_and_merges(clip)
    models = dataclasses.replace(tiny, clips=(clip / "tokenizer",))
    assert token_limit_of(models).ids(TEXTS, "") == token_limit_of(tiny).ids(TEXTS, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a readable .safetensors file"),
        ({"x": torch.zeros(1)}, "not a checkpoint of Stable Diffusion 1, 2 or XL"),
        (
            {"cond_stage_model.transformer.x": torch.zeros(1)},
            "a single file has no configuration; that of stable-diffusion-v1-5/.* no such folder, "
            "not in the hub's cache, and the hub cannot be reached; use a diffusers folder, or down",
        ),
    ],
)
def test_a_single_file_that_cannot_be_used_is_one_line(
    tiny: Models, tmp_path: Path, content: Any, message: str
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing") if content is None else save_file(content, path)
    with pytest.raises(ModelError, match=f"model {path}: {message}") as caught:
        _ = dataclasses.replace(tiny, model=str(path)).folder
    assert "\n" not in str(caught.value)
