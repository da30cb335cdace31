"""Mentions that nobody listed, found with CLIP in captions of the miniature world."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from unlearn_runs import short

from erase_sd.data.concept import Concept
from erase_sd.data.dataset import CaptionedImage
from erase_sd.data.phrases import MIN_CAPTIONS, frequent_phrases, occurrences, span_of
from erase_sd.data.split import ConceptSets, split_by_concept
from erase_sd.data.syntax import parse
from erase_sd.mini.captions import training_captions
from erase_sd.mini.scenes import sample
from erase_sd.models import erased
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models, resolve
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.unlearning import mentions as mining
from erase_sd.unlearning import stage
from erase_sd.unlearning.mentions import (
    Mentions,
    concept_direction,
    mention_lines,
    mine_mentions,
    sufficient,
    with_mentions,
)
from erase_sd.unlearning.session import Session
from erase_sd.unlearning.stage import unlearn

IMAGES = 1200
SEED = 77_000_000
"""First scene; the packaged dataset has others."""


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


def test_a_phrase_that_is_only_part_of_a_longer_one_is_no_candidate() -> None:
    things = ("near a cow", "and a dog", "with a man", "beside a cup", "by a kite", "on a car")
    captions = [f"a granny smith {thing} in a park" for thing in things]
    others = [f"a boy {thing} in a park" for thing in things] * 3
    rows = frequent_phrases(captions, list(parse(captions)), others)
    assert len(rows["granny", "smith"]) == len(captions)
    assert ("granny",) not in rows and ("smith",) not in rows
    assert ("park",) not in rows and ("cow",) not in rows  # as frequent in the others


def test_rare_phrases_are_no_candidates() -> None:
    captions = ["a pippin on a road"] * (MIN_CAPTIONS - 1) + ["a cow"] * 9
    assert ("pippin",) not in frequent_phrases(captions, list(parse(captions)), ["a dog"] * 9)


def test_occurrences_and_spans_are_those_of_whole_words() -> None:
    captions = ["A Pippin .", "pippins and a fruit with a leaf", "fruit, with a leaf"]
    phrases = {("pippin",), ("fruit", "with", "a", "leaf")}
    assert occurrences(phrases, captions) == {("pippin",): [0], ("fruit", "with", "a", "leaf"): [1]}
    start, end = span_of(("fruit", "with", "a", "leaf"), captions[1])
    assert captions[1][start:end] == "fruit with a leaf"


def test_a_phrase_suffices_beyond_chance_only() -> None:
    often, rarely = torch.tensor([0.6, 0.9] * 20), torch.tensor([0.6, 0.9])
    assert sufficient({("often",): often, ("rarely",): rarely}) == [("often",)]
    assert sufficient({}) == []


def test_frequent_and_short_phrases_come_first_and_each_explains_more_captions() -> None:
    rows = {
        ("a", "pippin"): range(5), ("pippin",): range(5), ("granny", "smith"): range(5, 12),
        ("smith",): range(5, 10), ("leaf",): (5, 6, 12, 13, 14, 15),
    }  # fmt: skip
    assert list(mining._cover(rows).items()) == [("granny smith", 7), ("pippin", 5)]


def test_captions_are_taken_from_all_of_them() -> None:
    assert mining._spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert mining._spread(range(3), 5) == [0, 1, 2]


def test_mentions_are_added_to_the_synonyms_that_were_given() -> None:
    concepts = (Concept("apple", ("fruit",)), Concept("chair", ("seat",)))
    more = with_mentions(concepts, {"apple": {"pippin": 3, "fruit": 2}})
    assert more == (Concept("apple", ("fruit", "pippin")), concepts[1])


def test_synonyms_and_descriptions_of_the_concept_are_found(mined: Mentions) -> None:
    phrases = set(mined["apple"])
    assert {"pippin", "fruit with a leaf"} <= phrases
    assert any("granny smith" in phrase for phrase in phrases)
    assert any("stem and a leaf" in phrase for phrase in phrases)


def test_the_shortest_sufficient_phrase_wins(mined: Mentions) -> None:
    assert not any("pippin" in phrase and phrase != "pippin" for phrase in mined["apple"])
    assert "leaf" not in mined["apple"]  # a part of what means the concept


def test_neither_look_alikes_nor_neighbours_are_found(mined: Mentions) -> None:
    apple = with_mentions([Concept("apple")], mined)[0]
    for text in ("an orange", "a yellow banana", "a chair", "a man", "an elephant", "a kitchen"):
        assert not apple.in_text(text)
    for text in ("a round citrus fruit", "a curved fruit with a peel", "a laptop", "a macbook"):
        assert not any(Concept(phrase).in_text(text) for phrase in mined["apple"])


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["bicycle", "chair"])
def test_other_wordings_are_mentions_and_no_other_caption_is(concept: str) -> None:
    from erase_sd.data.flickr30k import read_flickr30k
    from erase_sd.mini.training.mentions import measured

    models = resolve("mini", None, None, None)
    items = read_flickr30k(models.pairs()).items
    otherwise, without = measured(load_clip(models.clip_folder(0)), items, concept)
    assert len(otherwise) > 50 and all(otherwise)
    assert len(without) > 1000 and not any(without)


def test_a_refused_phrase_is_not_found(clip: Clip, sets: ConceptSets) -> None:
    refused = Concept("apple", keep_senses=("pippin",))
    mentions = mine_mentions(clip, sets, [refused])
    assert mentions["apple"] and not any("pippin" in phrase for phrase in mentions["apple"])


def test_each_concept_is_mined_in_the_other_captions_of_its_own_images(
    clip: Clip, items: list[CaptionedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    concepts = [Concept("apple"), Concept("chair")]
    long = [CaptionedImage(f"long-{n}.jpg", ("an apple" + " and a dog" * 99,)) for n in range(9)]
    sets = split_by_concept([*items, *long], concepts)
    named: list[list[str]] = []
    searched: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(mining, "concept_direction", lambda _, own, __: named.append(own))
    monkeypatch.setattr(mining, "parse", lambda captions: captions)
    monkeypatch.setattr(
        mining, "frequent_phrases", lambda own, _, retain: searched.append((own, retain)) or {}
    )
    assert mining._mine(clip, concepts[0], [], []) == {}
    assert mine_mentions(clip, sets, concepts) == {"apple": {}, "chair": {}}
    forget = sets.pairs("forget", "train")
    retain = [pair.caption for pair in sets.pairs("retain", "train")]
    for concept, own in zip(concepts, named, strict=True):
        assert own and all(concept.in_text(caption) for caption in own)
        assert max(map(len, own)) < 200  # none that does not fit into CLIP
        images = {pair.image for pair in forget if concept.name in pair.mentions}
        others = [p.caption for p in forget if p.image in images and not p.mentions]
        assert others and searched.pop(0) == (others, retain)


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


@pytest.mark.parametrize(
    ("mine", "method", "found"),
    [
        (True, "cliperase-anchored", {"macbook": 2}),
        (False, "cliperase-anchored", {}),
        (True, "cliperase", {}),  # which erases the words that were given
    ],
)
def test_mining_can_be_switched_off_and_what_it_finds_is_erased_and_recorded(
    mine: bool, method: str, found: dict[str, int], monkeypatch: pytest.MonkeyPatch, tiny: Models,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    concept, opened, removed = Concept("apple"), [], list[bool]()
    open_session = stage.open_session

    def watched(*args: Any) -> Session:
        opened.extend(args[2:5])
        session = open_session(*args)
        pairs = session.pairs.forget["train"]
        changed = (pairs.ids != pairs.concept_removed_ids).any(1).tolist()
        rows = zip(pairs.pairs, changed, strict=True)
        removed.extend(own for pair, own in rows if "apple" not in pair.caption)
        return session

    monkeypatch.setattr(stage, "mine_mentions", lambda *_: {"apple": {"macbook": 2}})
    monkeypatch.setattr(stage, "open_session", watched)
    run = Run(Path("runs/a"))
    with caplog.at_level("INFO"):
        unlearn(short(mine_mentions=mine, method=method, steps=2), tiny, run)
    assert ("apple: other mentions: macbook (2)" in caplog.messages) is bool(found)
    data, sets, concepts = opened
    given = split_by_concept(data.items, [concept])
    assert concepts == (dataclasses.replace(concept, synonyms=tuple(found)),)
    assert sets == (given.also_mentioned(concepts) if found else given)
    assert (sets == given) is not bool(found)
    assert any(removed) is bool(found)
    record = erased.check(run.erased)
    assert record.mentions == ({"apple": found} if found else {})
    assert record.concepts == (concept,)
