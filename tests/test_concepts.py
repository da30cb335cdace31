"""What a caption mentions, what is left of it, and which classes it names."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erase_sd.data.coco import named_classes
from erase_sd.data.concept import Concept, plurals_of, without
from erase_sd.errors import SettingError
from erase_sd.unlearning.settings import concepts_from

APPLE = Concept("apple", keep_senses=("apple laptop",))
CLASSES = ("person", "car", "cat", "dog", "elephant", "apple", "hot dog", "laptop", "tv")


@pytest.mark.parametrize(
    "text",
    [
        "apple",
        "An apple.",
        "red apples!",
        "the apple's core",
        "the apples\u2019 cores",
        "(apple)",
        "pear/apple",
        "\napple",
        "an apple - red",
        "an apple- red",
        "an apple\u2014red",
    ],
)
def test_a_whole_word_is_a_mention(text: str) -> None:
    assert Concept("apple").in_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pineapple",
        "pineapples",
        "apple-pie",
        "apple-shaped",
        "crab-apple",
        "apple\u2011shaped",
        "apple_pie",
        "applet",
        "a pear",
    ],
)
def test_a_part_of_a_word_is_no_mention(text: str) -> None:
    assert not Concept("apple").in_text(text)


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("apple", "apples"), ("bus", "buses"), ("child", "children"), ("goose", "geese"),
        ("hot dog", "hot dogs"), ("glass of wine", "glasses of wine"), ("knife", "knives"),
        ("mouse", "mice"), ("person", "people"), ("sheep", "sheep"),
    ],
)  # fmt: skip
def test_plurals_are_mentions_regular_or_not(one: str, many: str) -> None:
    assert plurals_of(one)[0] == many
    assert Concept(one).in_text(f"Some {many} outside")


def test_a_plural_of_older_english_is_a_mention_too() -> None:
    assert plurals_of("person") == ("people", "persons")
    assert Concept("person").in_text("two persons")


def test_case_does_not_matter() -> None:
    assert Concept("Apple").in_text("an APPLE")
    assert Concept("apple").in_text("Apples fall")
    assert not APPLE.in_text("An Apple LAPTOP")


def test_spans_are_offsets_of_the_words_in_order() -> None:
    text = "Apples, an apple and pineapple"
    assert Concept("apple").spans(text) == [(0, 6), (11, 16)]
    assert [text[start:end] for start, end in Concept("apple").spans(text)] == ["Apples", "apple"]


def test_a_synonym_and_its_plural_are_mentions() -> None:
    dog = Concept("dog", synonyms=("puppy",))
    assert dog.in_text("a puppy") and dog.in_text("two puppies") and dog.in_text("a dog")
    assert not Concept("dog").in_text("a puppy")


@pytest.mark.parametrize("text", ["hot dog", "hot \t dog", "hot-dogs", "hotdog", "Hot - Dog"])
def test_a_phrase_may_stand_apart_with_a_hyphen_or_as_one_word(text: str) -> None:
    assert Concept("hot dog").spans(f"a {text} here") == [(2, 2 + len(text))]
    assert Concept("hot-dog").spans(f"a {text} here") == [(2, 2 + len(text))]
    assert not Concept("hot dog").in_text(f"a s{text}")


def test_a_concept_with_an_accent_is_found_however_it_is_typed() -> None:
    assert Concept("cafe\u0301").in_text("two CAF\u00c9S")
    assert not Concept("cafe").in_text("a caf\u00e9")


def test_a_kept_sense_is_no_mention_and_the_word_alone_still_is() -> None:
    assert not APPLE.in_text("an apple laptop and two apple laptops")
    assert APPLE.spans("an apple laptop and an apple") == [(23, 28)]
    assert Concept("apple").in_text("an apple laptop")


def test_hot_dog_is_kept_where_dogs_go() -> None:
    dog = Concept("dog", keep_senses=("hot dog",))
    assert not dog.in_text("a man eats hot dogs")
    assert dog.spans("a dog eats a hot dog") == [(2, 5)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dog", "men eat hot dogs, hotdogs and a corn dog"),
        ("bear", "a girl with two teddy bears"),
        ("horse", "a boy on the pommel horse"),
        ("Bus", "people wait at a Bus Stop"),
    ],
)
def test_well_known_phrases_are_another_thing(name: str, text: str) -> None:
    (concept,) = concepts_from([name])
    assert not concept.in_text(text)
    assert concept.in_text(f"{text} near a {name}")


def test_a_well_known_phrase_goes_too_where_it_is_given_as_a_synonym() -> None:
    (dog,) = concepts_from(["dog"], ["Hot Dog"], ["dog tag"])
    assert dog.in_text("a hot dog") and not dog.in_text("a corn dog")
    assert not dog.in_text("a dog tag")


def test_a_brand_stays_with_the_word_unless_it_is_kept() -> None:
    assert concepts_from(["apple"])[0].in_text("an apple laptop")
    assert not concepts_from(["apple"], (), ["apple laptop"])[0].in_text("an apple laptop")


@pytest.mark.parametrize("word", ["", " ", "\t", "?!"])
def test_a_concept_without_a_word_is_refused(word: str) -> None:
    for fields in (
        {"name": word},
        {"name": "a", "synonyms": (word,)},
        {"name": "a", "keep_senses": (word,)},
    ):
        with pytest.raises(SettingError, match="needs a word"):
            Concept(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("an apple", ""),
        ("apples on a plate", "on a plate"),
        ("one ripe green apple on a plate", "on a plate"),
        ("two big shiny apples on a plate", "on a plate"),
        ("a dog next to a red apple in a park", "a dog in a park"),
        ("a man holding an apple by a tree", "a man by a tree"),
        ("a plate behind his apple", "a plate"),
        ("An apple and a dog", "a dog"),
        ("an apple, a dog", "a dog"),
        ("a cup, an apple and a dog", "a cup and a dog"),
        ("an apple next to an apple", ""),
        ("An apple and a dog and two red apples", "a dog"),
        ("an apple laptop and an apple", "an apple laptop"),
        ("the green apple's leaf on a plate", "leaf on a plate"),
        ("the apples\u2019 leaves", "leaves"),
    ],
)
def test_without_takes_the_whole_phrase(text: str, left: str) -> None:
    assert without(text, [APPLE])[0] == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a dog and apples on a table", "a dog on a table"),
        ("A boy with apples in a park", "A boy in a park"),
    ],
)
def test_without_leaves_the_noun_before_the_link(text: str, left: str) -> None:
    assert without(text, [APPLE])[0] == left


def test_without_tells_what_went() -> None:
    text = "a dog next to a red apple in a park with an apple"
    _, gone = without(text, [APPLE])
    assert [text[start:end] for start, end in gone] == ["next to a red apple", "with an apple"]


@pytest.mark.parametrize("text", ["a dog in a park", "a pineapple, by an apple laptop.", ""])
def test_without_changes_nothing_where_nothing_is_mentioned(text: str) -> None:
    assert without(text, [APPLE]) == (text, [])


def test_without_takes_all_of_several_concepts() -> None:
    left, gone = without("an apple, a dog and a cat on grass", [APPLE, Concept("dog")])
    assert left == "and a cat on grass"
    assert gone == [(0, 15)]


WORDS = [
    "a", "an", "the", "two", "red", "big", "apple", "Apples", "laptop", "pineapple", "apple-pie",
    "dog", "dogs", "and", "with", ",", "holding", "eats", ".", "near", "in", "park",
]  # fmt: skip


@settings(database=None, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_what_without_leaves_never_mentions_the_concept(text: str) -> None:
    left, gone = without(text, [APPLE])
    assert not APPLE.in_text(left)
    assert bool(gone) == APPLE.in_text(text)
    assert not set(left.split()) - set(text.split())


def test_classes_are_named_once_in_the_detectors_order() -> None:
    text = "A laptop, two dogs, a puppy and another dog beside a woman"
    assert named_classes(text, CLASSES) == ["person", "dog", "laptop"]


def test_no_class_is_named_where_none_is_mentioned() -> None:
    assert named_classes("a pineapple and an apple-pie", CLASSES) == []


def test_a_hot_dog_is_no_dog() -> None:
    assert named_classes("a hot dog", CLASSES) == ["hot dog"]
    assert named_classes("a dog and a hot dog", CLASSES) == ["dog", "hot dog"]


def test_a_well_known_phrase_names_no_class_of_its_words() -> None:
    names = ("car", "bus", "train", "horse", "bear", "teddy bear")
    assert named_classes("a train car at a bus stop", ("car", "bus")) == []
    assert named_classes("a rocking horse and a teddy bear", names) == ["teddy bear"]
    assert named_classes("a train leaves the train station", names) == ["train"]


def test_an_apple_laptop_is_a_laptop_and_no_apple() -> None:
    assert named_classes("apple laptops", CLASSES) == ["laptop"]
    assert named_classes("an apple on an apple laptop", CLASSES) == ["apple", "laptop"]


def test_everyday_words_and_irregular_plurals_name_their_class() -> None:
    assert named_classes("Men watch television", CLASSES) == ["person", "tv"]
    assert named_classes("children", CLASSES) == named_classes("people", CLASSES) == ["person"]
