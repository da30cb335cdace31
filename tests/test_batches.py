"""A step's batch: what a method reads of the original is there, and nothing else is computed."""

from __future__ import annotations

import pytest
import torch

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning.batches import Batches
from erase_sd.unlearning.captions import rows_of
from erase_sd.unlearning.settings import Settings

APPLE = (Concept("apple"),)


@pytest.fixture
def clip(tiny: Models) -> Clip:
    return load_clip(tiny.clips[0])


@pytest.fixture
def batches(tiny: Models, clip: Clip) -> Batches:
    data = read(tiny.pairs())
    forget = [item for item in data.items if any(map(APPLE[0].in_text, item.captions))]
    retain = [item for item in data.items if item not in forget]
    settings = Settings(concepts=APPLE, forget_batch=3, retain_batch=4)
    sides = rows_of(clip, data, forget[:4], APPLE, True), rows_of(clip, data, retain[:4], (), True)
    return Batches(settings, clip, *sides)


def test_a_batch_has_what_is_read_and_no_more(batches: Batches, clip: Clip) -> None:
    for reads, features, states in (
        (frozenset[str](), (0, 0), 0),
        (frozenset({"features"}), (3, 4), 0),
        (frozenset({"states"}), (0, 4), 4),
    ):
        batch = batches.at(0, 10, reads)
        sides = batch.forget.original, batch.retain.original
        assert tuple(len(side.text) for side in sides) == features
        assert (len(sides[0].states), len(sides[1].states)) == (0, states)
        assert len(batch.reduced.states) == (3 if "states" in reads else 0)
        for side, given in zip((batch.forget, batch.retain), sides, strict=True):
            assert torch.equal(
                given.image.norm(dim=-1).round(decimals=4), torch.ones(len(side.ids))
            )
            if len(given.text):
                torch.testing.assert_close(given.text, clip.encode_text(side.ids)[0])


def test_each_position_of_a_reduced_caption_holds_what_it_should_be(
    batches: Batches, clip: Clip
) -> None:
    batch = batches.at(0, 10, frozenset({"states"}))
    rows = batches.forget
    for ids, states in zip(batch.forget.ids, batch.reduced.states, strict=True):
        [row] = {i for i in range(len(rows)) if torch.equal(rows.ids[i], ids)} or {-1}
        then = clip.encode_text(rows.reduced_ids[row : row + 1])[1][0]
        for position, source in enumerate(rows.source[row].tolist()):
            torch.testing.assert_close(states[position], then[source])


def test_features_do_not_see_what_is_cut_off(clip: Clip) -> None:
    ids = clip.tokens(["a dog", "a dog next to a red apple"])
    short = clip.cut(ids)
    assert short.shape[1] == int(clip.ends(ids).max()) + 1 < ids.shape[1]
    full, cut = clip.encode_text(ids), clip.encode_text(short)
    torch.testing.assert_close(cut[0], full[0])
    torch.testing.assert_close(cut[1], full[1][:, : short.shape[1]])


def test_the_same_seed_and_step_draw_the_same_and_others_do_not(batches: Batches) -> None:
    first, again, later = (batches.at(step, 10, frozenset()).retain.ids for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later)
