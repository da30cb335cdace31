"""CLIP and BLIP as embedders, against what the models themselves give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blip_model import make_blip
from PIL import Image

from erase_sd.data.flickr30k import read
from erase_sd.errors import ModelError
from erase_sd.evaluation.embedders import BlipEmbedder, ClipEmbedder, is_blip, load_blip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip, with_weights

TEXTS = ["a red apple", "a dog in the snow", "a"]


def pictures(tiny: Models) -> list[Image.Image]:
    data = read(tiny.pairs())
    return [Image.open(data.path_of(item)).convert("RGB") for item in data.items[:3]]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"))


def test_blips_features_give_its_own_contrastive_scores(tiny: Models, blip: Path) -> None:
    towers = load_blip(blip)
    images = pictures(tiny)
    read = towers.tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = towers.processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        own = towers.model(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"],
            pixel_values=pixels, use_itm_head=False,
        ).itm_score  # fmt: skip
    ours = towers.images(images) @ towers.texts(TEXTS).T
    assert ours.std() > 1e-3  # they are not all the same
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


def test_a_text_alone_gives_what_it_gives_among_longer_ones(blip: Path) -> None:
    towers = load_blip(blip)
    torch.testing.assert_close(towers.texts(TEXTS)[2:], towers.texts(TEXTS[2:]))


def test_clips_features_give_its_own_scores(tiny: Models) -> None:
    clip = load_clip(tiny.clips[0])
    towers, images = ClipEmbedder(clip), pictures(tiny)
    with torch.no_grad():
        own = clip.model(input_ids=clip.tokens(TEXTS), pixel_values=clip.process(images))
    ours = towers.images(images) @ towers.texts(TEXTS).T
    logits = ours * clip.model.logit_scale.exp()
    torch.testing.assert_close(logits, own.logits_per_image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])  # as SD 1 and SD 2 do
def test_clips_texts_give_at_their_own_length_what_they_give_padded(tiny: Models, pad: str) -> None:
    clip = load_clip(tiny.clips[0])
    clip.tokenizer.pad_token = pad
    texts = [("a dog next to a red apple in the snow " * 2)[:cut] for cut in range(1, 60)] * 3
    padded, _ = clip.encode_texts(clip.tokens(texts))
    torch.testing.assert_close(ClipEmbedder(clip).texts(texts), padded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_what_has_no_room_is_told_before(tiny: Models, blip: Path, kind: str) -> None:
    towers: ClipEmbedder | BlipEmbedder
    towers = ClipEmbedder(load_clip(tiny.clips[0])) if kind == "clip" else load_blip(blip)
    assert towers.fits(["a dog", "dog " * 60]) == [True, False]


def test_a_folder_of_another_kind_is_no_blip(tiny: Models, tmp_path: Path, blip: Path) -> None:
    assert is_blip(blip) and not is_blip(tiny.clips[0])
    with pytest.raises(ModelError, match="no model folder"):
        is_blip(tmp_path)


def test_with_weights_changes_the_towers_it_is_given_and_leaves_the_first_alone(
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
