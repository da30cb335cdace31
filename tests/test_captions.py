"""Tokenized caption pairs, and the position map to their concept-removed counterparts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.pair import CaptionPair
from erase_sd.data.split import split_by_concept
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning.captions import (
    concept_removed_ids,
    mention_ends,
    position_map,
    tokenize_pairs,
)

APPLE = Concept("apple")


@pytest.fixture
def clip(tiny: Models) -> Clip:
    return load_clip(tiny.clip_folder(0))


def without(clip: Clip, text: str, concept: Concept = APPLE) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, source and mask of one caption's concept-removed counterpart."""
    mentions = (concept.name,) if concept.in_text(text) else ()
    pair = CaptionPair(caption=text, image="a.jpg", mentions=mentions, set="forget", split="train")
    ids, source, mask = concept_removed_ids(clip, [pair], clip.tokens([text]), (concept,))
    return ids[0], source[0], mask[0]


def words(clip: Clip, ids: Tensor) -> list[str]:
    return [clip.tokenizer.decode([i]) for i in ids.tolist()]


def test_removed_tokens_map_to_the_last_kept_token_before_them() -> None:
    # <start> "red apple pie" <end> without characters 0-9, "red apple".
    ids, offsets = [1, 11, 12, 13, 2], [(0, 0), (0, 3), (4, 9), (10, 13), (0, 0)]
    assert position_map(ids, offsets, [(0, 9)], [1, 13, 2]) == [0, 0, 0, 1, 2]
    assert position_map(ids, offsets, [], ids) == [0, 1, 2, 3, 4]
    # A token that begins where the removed span ends, or ends where it begins, is kept.
    comma = [(0, 0), (0, 5), (5, 6), (7, 10), (0, 0)]
    assert position_map([1, 12, 19, 13, 2], comma, [(0, 5)], [1, 19, 13, 2]) == [0, 0, 1, 2, 3]
    spaced = [(0, 0), (0, 3), (4, 9), (0, 0)]
    assert position_map([1, 11, 12, 2], spaced, [(3, 9)], [1, 11, 2]) == [0, 1, 1, 2]


def test_an_inserted_token_has_no_counterpart() -> None:
    # "cup, dog, apple" becomes "cup and dog": the first comma is replaced, ", apple" is removed.
    ids = [1, 11, 19, 12, 19, 13, 2]
    offsets = [(0, 0), (0, 3), (3, 4), (5, 8), (8, 9), (10, 15), (0, 0)]
    positions = position_map(ids, offsets, [(3, 4), (8, 15)], [1, 11, 18, 12, 2])
    assert positions == [0, 1, 1, 3, 3, 3, 4]


@pytest.mark.parametrize("short", [[1, 14, 2], [1, 12, 11, 2], [1, 11, 2], [1, 11, 12, 2, 15]])
def test_captions_that_do_not_align_have_no_map(short: list[int]) -> None:
    assert position_map([1, 11, 12, 2], [(0, 0), (0, 3), (4, 9), (0, 0)], [], short) is None


def test_kept_words_map_to_themselves_and_the_phrase_to_the_word_before_it(clip: Clip) -> None:
    ids, source, mask = without(clip, "a dog next to an apple in a park")
    assert words(clip, ids)[1:6] == ["a", "dog", "in", "a", "park"]
    targets = words(clip, ids[source])
    assert targets[1:10] == ["a", "dog", "dog", "dog", "dog", "dog", "in", "a", "park"]
    assert mask.all()


def test_the_end_maps_to_the_end_and_padding_to_the_same_position(clip: Clip) -> None:
    _, source, _ = without(clip, "an apple in a park")
    # <start> an apple in a park <end> becomes <start> a park <end>: the end moves from 6 to 3.
    assert source[:7].tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert source[7:].tolist() == list(range(7, clip.length))


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("a dog in a park", APPLE),  # no mention
        ("an apple laptop", Concept("apple", (), ("apple laptop",))),  # a kept sense
        ("hot hot dog dog", Concept("hot dog")),  # still a mention after the removal
    ],
)
def test_captions_without_a_counterpart_are_masked(clip: Clip, text: str, concept: Concept) -> None:
    ids, source, mask = without(clip, text, concept)
    assert not mask.any()
    assert torch.equal(ids, clip.tokens([text])[0])
    assert source.tolist() == list(range(clip.length))


def test_a_caption_that_still_mentions_one_of_several_concepts_is_masked(clip: Clip) -> None:
    text, concepts = "an apple and a hot hot dog dog", (APPLE, Concept("hot dog"))
    pair = CaptionPair(
        caption=text, image="a.jpg", mentions=("apple", "hot dog"), set="forget", split="train"
    )
    assert not concept_removed_ids(clip, [pair], clip.tokens([text]), concepts)[2].any()


def test_a_mention_ends_at_the_last_token_of_the_last_one(clip: Clip) -> None:
    zeppelin = len(clip.tokenizer("zeppelin", add_special_tokens=False)["input_ids"])
    expected = {
        "a dog in a park": 0,
        "an apple next to an apple in a park": 6,  # <start> is 0
        "a zeppelin in a park": 1 + zeppelin,
        "an apple on a zeppelin.": 4 + zeppelin,
        "a zeppelin and an apple": 4 + zeppelin,
    }
    concepts = (APPLE, Concept("zeppelin"))
    pairs = [
        CaptionPair(
            caption=text, image="a.jpg", set="forget", split="train",
            mentions=tuple(c.name for c in concepts if c.in_text(text)),
        )
        for text in expected
    ]  # fmt: skip
    assert mention_ends(clip, pairs, concepts).tolist() == list(expected.values())


def test_a_word_of_several_tokens_is_removed_as_a_whole(clip: Clip) -> None:
    assert len(clip.tokenizer("zeppelin")["input_ids"]) > 3
    ids, _, mask = without(clip, "a dog and a zeppelin in a park", Concept("zeppelin"))
    assert words(clip, ids)[1:6] == ["a", "dog", "in", "a", "park"]
    assert mask.all()


def test_image_features_are_computed_on_request_only(tiny: Models, clip: Clip) -> None:
    data = read_flickr30k(tiny.pairs())
    pairs = split_by_concept(data.items, (APPLE,)).pairs("retain", "train")[:15]
    tokenized = tokenize_pairs(clip, data, pairs, (APPLE,), images=False)
    assert tokenized.image is None and tokenized.ids.shape == (15, clip.length)
    tokenized = tokenize_pairs(clip, data, pairs, (APPLE,), images=True)
    assert tokenized.image is not None and tokenized.image.shape[0] == 15


def test_captions_beyond_the_context_length_are_left_out_with_a_warning(
    tiny: Models, clip: Clip, caplog: pytest.LogCaptureFixture
) -> None:
    data = read_flickr30k(tiny.pairs())
    image = data.items[0].image
    pairs = [
        CaptionPair(caption=caption, image=image, mentions=(), set="retain", split="train")
        for caption in ("a dog", "apple " * clip.length, "a cat")
    ]
    tokenized = tokenize_pairs(clip, data, pairs, (APPLE,), images=True)
    assert [pair.caption for pair in tokenized.pairs] == ["a dog", "a cat"]
    assert tokenized.image is not None
    assert len(tokenized.ids) == len(tokenized.image) == len(tokenized.paths) == 2
    assert {path.name for path in tokenized.paths} == {image}
    assert caplog.messages == ["1 captions of more than 32 tokens are left out"]
