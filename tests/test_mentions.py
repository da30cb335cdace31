"""Mentions that nobody listed, found with CLIP in captions of the miniature world."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unlearn_runs import short

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import CaptionedImage
from erase_sd.data.split import ConceptSets, split_by_concept
from erase_sd.data.syntax import noun_phrases, parse
from erase_sd.mini.captions import training_captions
from erase_sd.mini.scenes import sample
from erase_sd.models.clip import Clip
from erase_sd.models.presets import resolve
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.unlearning.mentions import (
    Mentions,
    concept_direction,
    mention_lines,
    mine_mentions,
    with_mentions,
)
from erase_sd.unlearning.stage import unlearn

IMAGES = 500
SEED = 77_000_000
"""First scene; the packaged dataset has others."""
MEANS_APPLE = ("pippin", "granny smith", "fruit", "leaf")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(resolve("mini", None, None, None).clip_folder(0))


@pytest.fixture(scope="module")
def items() -> list[CaptionedImage]:
    captions = (tuple(training_captions(sample(SEED + n))) for n in range(IMAGES))
    return [CaptionedImage(f"{n}.jpg", texts) for n, texts in enumerate(captions)]


@pytest.fixture(scope="module")
def sets(items: list[CaptionedImage]) -> ConceptSets:
    return split_by_concept(items, [Concept("apple")])


@pytest.fixture(scope="module")
def mined(clip: Clip, sets: ConceptSets) -> Mentions:
    return mine_mentions(clip, sets, [Concept("apple")])


def test_noun_phrases_come_without_determiner_the_shortest_first() -> None:
    text = "a round fruit with a leaf in a kitchen"
    phrases = [text[a:b] for a, b in noun_phrases(next(parse([text])))]
    assert phrases[:2] == ["leaf", "kitchen"] or phrases[:2] == ["kitchen", "leaf"]
    assert phrases.index("round fruit") < phrases.index("round fruit with a leaf")


def test_synonyms_and_descriptions_of_the_concept_are_found(mined: Mentions) -> None:
    phrases = set(mined["apple"])
    assert "pippin" in phrases and any("granny smith" in phrase for phrase in phrases)
    assert any("fruit with a" in phrase for phrase in phrases)


def test_neither_look_alikes_nor_neighbours_are_found(mined: Mentions) -> None:
    assert [p for p in mined["apple"] if not any(word in p for word in MEANS_APPLE)] == []
    apple = with_mentions([Concept("apple")], mined)[0]
    for text in ("an orange", "a yellow banana", "a chair", "a man", "an elephant", "a kitchen"):
        assert not apple.in_text(text)


def test_a_refused_phrase_is_not_found(clip: Clip, sets: ConceptSets) -> None:
    refused = Concept("apple", keep_senses=("pippin",))
    mentions = mine_mentions(clip, sets, [refused])
    assert mentions["apple"] and not any("pippin" in phrase for phrase in mentions["apple"])


def test_found_captions_become_mentions_in_the_training_split_only(
    sets: ConceptSets, mined: Mentions
) -> None:
    more = sets.also_mentioned(with_mentions([Concept("apple")], mined))
    before = sum(bool(pair.mentions) for pair in sets.pairs("forget", "train"))
    assert sum(bool(pair.mentions) for pair in more.pairs("forget", "train")) > before
    assert [p.caption for p in more.pairs("forget", "train")] == [
        p.caption for p in sets.pairs("forget", "train")
    ]
    for concept_set in ("forget", "retain"):
        for split in ("validation", "held-out"):
            assert more.pairs(concept_set, split) == sets.pairs(concept_set, split)  # type: ignore[arg-type]
    retained = [pair.caption.lower() for pair in more.pairs("retain", "train")]
    assert not any("pippin" in caption for caption in retained)


def test_the_direction_is_what_the_name_adds(clip: Clip) -> None:
    captions = ["an apple in a kitchen", "a dog and an apple"]
    direction = concept_direction(clip, captions, Concept("apple"))
    named, other = clip.encode_texts(clip.tokens(["an apple", "a chair"]))[0] @ direction
    assert named > other
    assert direction.square().sum() > 0 and torch.isfinite(direction).all()


def test_nothing_found_is_said() -> None:
    lines = mention_lines({"apple": {"pippin": 3, "granny smith": 5}, "chair": {}})
    assert lines == [
        "apple: other mentions: granny smith (5), pippin (3)",
        "chair: other mentions: none; its name and synonyms are erased",
    ]


def test_mining_can_be_switched_off_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: object
) -> None:
    from erase_sd.models import erased
    from erase_sd.unlearning import stage

    monkeypatch.setattr(stage, "mine_mentions", lambda *_: {"apple": {"pippin": 2}})
    for mine, recorded in ((True, {"apple": {"pippin": 2}}), (False, {})):
        run = Run(tmp_path / str(mine))
        unlearn(short(mine_mentions=mine), tiny, run)  # type: ignore[arg-type]
        assert erased.check(run.erased).mentions == recorded
