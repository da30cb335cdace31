"""CLIP's token ids, cached image features, and the words of a caption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.errors import DataError, ModelError
from erase_sd.models.clip import Clip, FreeEmbeddings, trainable
from erase_sd.models.features import image_features
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.models.tokens import words_of


@pytest.fixture
def clip(tiny: Models) -> Clip:
    return load_clip(tiny.clip_folder(0))


def test_token_ids_are_padded_to_the_context_length(clip: Clip) -> None:
    ids = clip.tokens(["a dog", "a dog next to a cat"])
    assert ids.shape == (2, clip.length) == (2, 32)
    assert clip.ends(ids)[0] == 3
    assert clip.cut(ids).shape[1] == clip.ends(ids)[1] + 1


def test_a_caption_that_does_not_fit_is_refused_not_truncated(clip: Clip) -> None:
    with pytest.raises(DataError, match=r"caption: 42 tokens, at most 32 fit: 'dog dog"):
        clip.tokens(["a dog", "dog " * 40])


def test_features_do_not_depend_on_the_padding(clip: Clip) -> None:
    ids = clip.tokens(["a dog", "a dog next to a cat"])
    padded, cut = clip.encode_texts(ids)[0], clip.encode_texts(clip.cut(ids))[0]
    assert torch.allclose(padded, cut, atol=1e-6)
    assert torch.allclose(padded.norm(dim=-1), torch.ones(2))


def test_many_texts_are_encoded_in_batches_as_one_by_one(clip: Clip) -> None:
    texts = [f"{number} dogs" for number in range(7)] * 40
    ids = clip.tokens(texts)
    clip.model.requires_grad_(True)
    features, hidden_states = clip.encode_texts(ids)
    assert len(ids) == 280 and not features.requires_grad
    few, few_states = (t.detach() for t in clip.encode_text(ids[:7]))
    for start in range(0, 280, 7):
        torch.testing.assert_close(features[start : start + 7], few)
        torch.testing.assert_close(hidden_states[start : start + 7], few_states)


def test_features_are_normalized_unless_asked_otherwise(clip: Clip) -> None:
    ids, pixels = clip.tokens(["a dog", "a cat"]), torch.rand(2, 3, 64, 64)
    for encode in (lambda unit: clip.encode_text(ids, unit)[0],
                   lambda unit: clip.encode_image(pixels, unit)):  # fmt: skip
        own = encode(False)
        assert not torch.allclose(own.norm(dim=-1), torch.ones(2))
        torch.testing.assert_close(encode(True), own / own.norm(dim=-1, keepdim=True))
    assert clip.scale == pytest.approx(1 / 0.07, rel=1e-3)  # as a fresh CLIP is made


def test_free_embeddings_stand_in_the_place_of_their_tokens_alone(clip: Clip) -> None:
    ids, other = clip.tokens(["a dog on a table", "a cat on a cat"])
    table = clip.model.text_model.get_input_embeddings()
    free = FreeEmbeddings(mask=(ids == ids[2])[None], embeddings=table(other)[None].double())
    mixed = torch.where(free.mask[0], other, ids)
    before = clip.encode_text(ids[None])
    for a, b in zip(
        clip.encode_text(ids[None], free=free), clip.encode_text(mixed[None]), strict=True
    ):
        assert torch.equal(a, b)
    assert all(map(torch.equal, clip.encode_text(ids[None]), before))
    assert not torch.equal(before[0], clip.encode_text(mixed[None])[0])


BIAS = "text_model.final_layer_norm.bias"


def test_other_weights_are_those_of_a_copy_with_its_own_digest(clip: Clip) -> None:
    before = clip.model.state_dict()[BIAS].clone()
    for image_tower in (False, True):
        after = clip.with_weights({BIAS: before + 1}, image_tower, Path("x"), ["1"])
        assert torch.equal(after.model.state_dict()[BIAS], before + 1)
        assert torch.equal(clip.model.state_dict()[BIAS], before)
        assert (after.model.vision_model is clip.model.vision_model) == (not image_tower)
        other = clip.with_weights({BIAS: before + 1}, image_tower, Path("x"), ["2"])
        another = dataclasses.replace(clip, digest="another").with_weights(
            {BIAS: before + 1}, image_tower, Path("x"), ["1"]
        )
        assert len({clip.digest, after.digest, other.digest, another.digest}) == 4
    for name, tensor in (("text_model.bias", before), (BIAS, before[:1]), (BIAS, before / 0)):
        with pytest.raises(ModelError, match=f"x: {name} does not fit this model"):
            clip.with_weights({name: tensor}, False, Path("x"), ["1"])


def test_projections_and_temperature_never_train(clip: Clip) -> None:
    text, both = trainable(clip, "text"), trainable(clip, "both")
    assert {name.partition(".")[0] for name in text} == {"text_model"}
    assert {name.partition(".")[0] for name in both} == {"text_model", "vision_model"}


def test_words_are_the_captions_own_characters_with_the_concepts_tokens_marked(clip: Clip) -> None:
    words = words_of(clip.tokenizer, "Two red apple .", (Concept("apple"),))
    assert words.tokens == ("<|startoftext|>", "Two", "red", "apple", ".", "<|endoftext|>")
    assert (words.last, words.end, words.mentions) == (3, 5, {3})
    capital = words_of(clip.tokenizer, "Two red Apples .", (Concept("apple"),))
    assert "".join(capital.tokens[k] for k in sorted(capital.mentions)) == "Apples"


def test_image_features_are_computed_once_and_a_damaged_cache_is_replaced(
    tiny: Models, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_flickr30k(tiny.pairs())
    names = [item.image for item in data.items[:3]]
    first = image_features(clip, data, [*names, names[0]])
    assert list(first) == names and all(abs(row.norm() - 1) < 1e-5 for row in first.values())
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "encode_image", None)
        assert torch.equal(image_features(clip, data, names)[names[0]], first[names[0]])
    [file] = Path("cache").rglob("*.safetensors")
    file.write_bytes(b"not safetensors")
    again = image_features(clip, data, names)
    assert all(torch.equal(again[name], first[name]) for name in names)


def test_image_features_of_another_clip_are_not_read_from_the_cache(
    tiny: Models, clip: Clip
) -> None:
    data = read_flickr30k(tiny.pairs())
    names = [item.image for item in data.items[:2]]
    own = image_features(clip, data, names)
    other = dataclasses.replace(clip.copied(image_tower=True), digest="another")
    other.model.visual_projection.weight.data.neg_()
    for name, feature in image_features(other, data, names).items():
        torch.testing.assert_close(feature, -own[name])
