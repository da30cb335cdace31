"""Captions without the concept: which position becomes which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import Captioned, read
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning.captions import image_features, reduce, rows_of

APPLE = (Concept("apple"),)


@pytest.fixture
def clip(tiny: Models) -> Clip:
    return load_clip(tiny.clips[0])


def words(clip: Clip, ids: torch.Tensor) -> list[str]:
    return [clip.tokenizer.decode([i]) for i in ids.tolist()]


def test_kept_words_go_to_themselves_and_the_phrase_to_the_word_before_it(clip: Clip) -> None:
    text = "a dog next to an apple in a park"
    ids = clip.tokens([text])
    reduced, source, mask = reduce(clip, [text], ids, APPLE)
    assert words(clip, reduced[0])[1:6] == ["a", "dog", "in", "a", "park"]
    becomes = words(clip, reduced[0][source[0]])
    assert becomes[1:10] == ["a", "dog", "dog", "dog", "dog", "dog", "in", "a", "park"]
    assert mask.all()


def test_the_end_goes_to_the_end_and_padding_to_the_same_place(clip: Clip) -> None:
    text = "an apple in a park"
    ids = clip.tokens([text])
    _, source, _ = reduce(clip, [text], ids, APPLE)
    # <start> an apple in a park <end> becomes <start> in a park <end>: end 6 -> 4.
    assert source[0, :7].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert source[0, 7:].tolist() == list(range(7, clip.length))


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("a dog in a park", Concept("apple")),  # no mention
        ("an apple laptop", Concept("apple", (), ("apple laptop",))),  # a kept sense
        ("hot hot dog dog", Concept("hot dog")),  # what is left mentions it again
    ],
)
def test_captions_without_a_counterpart_are_masked(clip: Clip, text: str, concept: Concept) -> None:
    ids = clip.tokens([text])
    reduced, source, mask = reduce(clip, [text], ids, (concept,))
    assert not mask.any()
    assert torch.equal(reduced, ids) and source[0].tolist() == list(range(clip.length))


def test_a_word_of_several_tokens_goes_as_a_whole(clip: Clip) -> None:
    text = "a dog and a zeppelin in a park"
    assert len(clip.tokenizer("zeppelin")["input_ids"]) > 3
    reduced, _, mask = reduce(clip, [text], clip.tokens([text]), (Concept("zeppelin"),))
    assert words(clip, reduced[0])[1:6] == ["a", "dog", "in", "a", "park"]
    assert mask.all()


def test_image_features_are_computed_once_and_a_damaged_cache_anew(
    tiny: Models, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read(tiny.pairs())
    items = data.items[:5]
    first = image_features(clip, data, items)
    assert all(first[item.image].norm() == pytest.approx(1, abs=1e-4) for item in items)
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "encode_image", lambda *_: pytest.fail("computed twice"))
        assert torch.equal(image_features(clip, data, items)[items[0].image], first[items[0].image])
    (cached,) = Path("cache/features").iterdir()
    cached.write_bytes(cached.read_bytes()[:50])
    again = image_features(clip, data, items)
    assert torch.equal(again[items[0].image], first[items[0].image])


def test_image_features_of_the_retain_side_are_left_out_on_request(
    tiny: Models, clip: Clip
) -> None:
    data = read(tiny.pairs())
    rows = rows_of(clip, data, data.items[:3], (), images=False)
    assert rows.image.shape == (15, 0) and rows.ids.shape == (15, clip.length)


def test_captions_longer_than_the_model_are_left_out_and_counted(
    tiny: Models, clip: Clip, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(tiny.pairs())
    long = Captioned(data.items[0].image, ("a dog", "apple " * clip.length, "a cat"))
    rows = rows_of(clip, data, [long, data.items[1]], (), images=True)
    assert rows.texts == ["a dog", "a cat", *data.items[1].captions]
    assert len(rows.ids) == len(rows.image) == len(rows.paths) == 7
    assert [path.name for path in rows.paths[:3]] == [*[long.image] * 2, data.items[1].image]
    assert capsys.readouterr().err == "erase-sd: 1 captions of more than 32 tokens are left out\n"
