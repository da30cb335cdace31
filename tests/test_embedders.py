"""CLIP and BLIP as embedders, against the scores of the models themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blip_model import make_blip
from PIL import Image

from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.errors import DataError, ModelError
from erase_sd.evaluation.embedders import Embedder
from erase_sd.models.blip import is_blip, load_blip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip, with_weights

TEXTS = ["a red apple", "a dog in the snow", "a"]


def images_of(tiny: Models) -> list[Image.Image]:
    data = read_flickr30k(tiny.pairs())
    return [Image.open(data.path_of(item.image)).convert("RGB") for item in data.items[:3]]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"))


def test_blip_features_reproduce_its_contrastive_scores(tiny: Models, blip: Path) -> None:
    loaded = load_blip(blip)
    embedder, images = Embedder(loaded), images_of(tiny)
    encoded = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = loaded.processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        own = loaded.model(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
            pixel_values=pixels, use_itm_head=False,
        ).itm_score  # fmt: skip
    ours = embedder.embed_images(images) @ embedder.embed_texts(TEXTS).T
    assert ours.std() > 1e-3  # a constant would match anything
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


def test_blip_features_of_a_text_do_not_depend_on_its_batch(blip: Path) -> None:
    embedder = Embedder(load_blip(blip))
    torch.testing.assert_close(embedder.embed_texts(TEXTS)[2:], embedder.embed_texts(TEXTS[2:]))


def test_clip_features_reproduce_its_scores(tiny: Models) -> None:
    clip = load_clip(tiny.clips[0])
    embedder, images = Embedder(clip), images_of(tiny)
    with torch.no_grad():
        own = clip.model(input_ids=clip.tokens(TEXTS), pixel_values=clip.process(images))
    ours = embedder.embed_images(images) @ embedder.embed_texts(TEXTS).T
    logits = ours * clip.model.logit_scale.exp()
    torch.testing.assert_close(logits, own.logits_per_image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])  # as SD 1 and SD 2 do
def test_clip_features_of_cut_texts_equal_those_of_padded_ones(tiny: Models, pad: str) -> None:
    clip = load_clip(tiny.clips[0])
    clip.tokenizer.pad_token = pad
    texts = [("a dog next to a red apple in the snow " * 2)[:cut] for cut in range(1, 60)] * 3
    padded, _ = clip.encode_texts(clip.tokens(texts))
    torch.testing.assert_close(Embedder(clip).embed_texts(texts), padded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_text_longer_than_the_context_length_is_refused(
    tiny: Models, blip: Path, kind: str
) -> None:
    embedder = Embedder(load_clip(tiny.clips[0]) if kind == "clip" else load_blip(blip))
    assert embedder.token_limit.fitting(["a dog", "dog " * 60]) == [True, False]
    with pytest.raises(DataError, match=r"62 tokens, at most \d+ fit"):
        embedder.embed_texts(["a dog", "dog " * 60])


def test_only_a_folder_of_a_blip_is_recognised_as_one(
    tiny: Models, tmp_path: Path, blip: Path
) -> None:
    assert is_blip(blip) and not is_blip(tiny.clips[0])
    with pytest.raises(ModelError, match="not a model folder"):
        is_blip(tmp_path)


def test_with_weights_replaces_the_named_embedder_and_leaves_the_original_unchanged(
    tiny: Models, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    clip = load_clip(tiny.clips[0])
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_bytes((tiny.model / "text_encoder/config.json").read_bytes())
    text = load_file(tiny.model / "text_encoder" / "model.safetensors")
    save_file(
        {name: tensor * 2 for name, tensor in text.items()}, encoder / "model.safetensors",
        metadata={"format": "pt"},
    )  # fmt: skip
    tower = tmp_path / "tower.safetensors"
    seen = {name: t * 3 for name, t in before.items() if name.startswith("vision_model.")}
    save_file(seen, tower)

    for path, factor in ((None, 1), (tower, 3)):
        after = with_weights(clip, encoder, path)
        assert after.digest != clip.digest
        for name, tensor in after.model.state_dict().items():
            times = {"text_model": 2, "vision_model": factor}.get(name.partition(".")[0], 1)
            assert torch.equal(tensor, before[name] * times), name
    assert all(torch.equal(t, before[name]) for name, t in clip.model.state_dict().items())

    save_file({"vision_model.other": torch.zeros(1)}, tower)
    with pytest.raises(ModelError, match=r"tower\.safetensors: vision_model\.other does not fit"):
        with_weights(clip, encoder, tower)
    tower.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"tower\.safetensors: weights cannot be loaded"):
        with_weights(clip, encoder, tower)
