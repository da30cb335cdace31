"""Pairs with no dataset: a grammar and the model itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import erase_sd
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read
from erase_sd.data.prompts import read_prompts
from erase_sd.errors import DataError
from erase_sd.models.presets import SYNTH, Models
from erase_sd.unlearning import synthetic as synth

CONCEPTS = (Concept("apple", ("pippin",), ("apple laptop",)),)
PROMPTS = Path(__file__).parents[1] / "prompts"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "FORGET", 12)
    monkeypatch.setattr(synth, "RETAIN", 16)


def test_every_way_to_say_a_forget_scene_names_the_concept_and_none_of_the_others() -> None:
    scenes = synth.captions(CONCEPTS)
    for number, texts in enumerate(scenes):
        said = {CONCEPTS[0].in_text(text) for text in texts}
        assert said == {number < synth.FORGET}
    assert len(scenes) == synth.FORGET + synth.RETAIN
    assert all(len(texts) == 5 for texts in scenes)


def test_synonyms_are_said_and_kept_senses_are_among_the_retained() -> None:
    scenes = synth.captions(CONCEPTS)
    forget, retain = scenes[: synth.FORGET], scenes[synth.FORGET :]
    assert any("pippin" in texts[0] for texts in forget)
    assert sum("apple laptop" in texts[0] for texts in retain) >= synth.RETAIN // 8


def test_several_concepts_and_one_that_is_among_its_own_words() -> None:
    both = (Concept("chair"), Concept("person", ("man", "woman", "boy", "girl")))
    scenes = synth.captions(both)
    assert len(scenes) == 2 * synth.FORGET + synth.RETAIN
    retain = [text for texts in scenes[2 * synth.FORGET :] for text in texts]
    assert not any(concept.in_text(text) for concept in both for text in retain)


def test_no_caption_of_it_is_one_of_the_prompts() -> None:
    said = {text.lower() for texts in synth.captions((Concept("apple"),)) for text in texts}
    prompts = [p for name in ("apple", "retain") for p in read_prompts(PROMPTS / f"{name}.txt")]
    assert prompts
    assert not said & {prompt.lower() for prompt in prompts}


def test_no_caption_is_longer_than_the_model_reads_and_a_concept_that_is_ends_it() -> None:
    short = synth.captions(CONCEPTS, fits=lambda text: len(text) < 40)
    assert max(len(text) for texts in short for text in texts) < 40
    with pytest.raises(DataError, match="no room for a caption with"):
        synth.captions(CONCEPTS, fits=lambda text: "pippin" not in text)


def test_the_folder_is_drawn_once_and_read_like_any_other(
    tiny: Models, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synth.pairs(tiny, CONCEPTS)
    assert "drawing 28 images" in capsys.readouterr().err
    data = read(folder)
    assert len(data.items) == 28
    assert {len(item.captions) for item in data.items} == {5}
    assert synth.pairs(tiny, CONCEPTS) == folder
    assert capsys.readouterr().err == ""
    assert synth.pairs(tiny, (Concept("chair"),)) != folder


def test_any_word_is_unlearned_without_a_dataset(tiny: Models, few: None) -> None:
    models = dataclasses.replace(tiny, data=SYNTH)
    folder = erase_sd.unlearn(
        "lighthouse", data="synth", model=models.model, clip=models.clips, steps=2,
        validate_every=2, retain_floor=0.0,
    )  # fmt: skip
    assert (folder / "erased" / "erase.json").is_file()
