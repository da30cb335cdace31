"""Which concepts a caption mentions, the caption without them, and which classes it names."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erase_sd.data.coco import named_classes
from erase_sd.data.concept import Concept, joined_slug, slug, with_article
from erase_sd.data.nouns import plurals_of
from erase_sd.data.removal import remove_concepts
from erase_sd.errors import SettingError
from erase_sd.unlearning.settings import parse_concepts

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
def test_part_of_a_word_is_not_a_mention(text: str) -> None:
    assert not Concept("apple").in_text(text)


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("apple", "apples"), ("bus", "buses"), ("child", "children"), ("goose", "geese"),
        ("hot dog", "hot dogs"), ("glass of wine", "glasses of wine"), ("knife", "knives"),
        ("mouse", "mice"), ("person", "people"), ("sheep", "sheep"),
    ],
)  # fmt: skip
def test_regular_and_irregular_plurals_are_mentions(one: str, many: str) -> None:
    assert plurals_of(one)[0] == many
    assert Concept(one).in_text(f"Some {many} outside")


def test_classical_plurals_are_mentions() -> None:
    assert plurals_of("person") == ("people", "persons")
    assert Concept("person").in_text("two persons")


def test_case_does_not_matter() -> None:
    assert Concept("Apple").in_text("an APPLE")
    assert Concept("apple").in_text("Apples fall")
    assert not APPLE.in_text("An Apple LAPTOP")


def test_spans_are_character_offsets_in_order() -> None:
    text = "Apples, an apple and pineapple"
    assert Concept("apple").spans(text) == [(0, 6), (11, 16)]
    assert [text[start:end] for start, end in Concept("apple").spans(text)] == ["Apples", "apple"]


def test_synonyms_and_their_plurals_are_mentions() -> None:
    dog = Concept("dog", synonyms=("puppy",))
    assert dog.in_text("a puppy") and dog.in_text("two puppies") and dog.in_text("a dog")
    assert not Concept("dog").in_text("a puppy")


@pytest.mark.parametrize("text", ["hot dog", "hot \t dog", "hot-dogs", "hotdog", "Hot - Dog"])
def test_a_phrase_matches_with_spaces_with_a_hyphen_or_as_one_word(text: str) -> None:
    assert Concept("hot dog").spans(f"a {text} here") == [(2, 2 + len(text))]
    assert Concept("hot-dog").spans(f"a {text} here") == [(2, 2 + len(text))]
    assert not Concept("hot dog").in_text(f"a s{text}")


def test_accents_match_in_any_unicode_form() -> None:
    assert Concept("cafe\u0301").in_text("two CAF\u00c9S")
    assert not Concept("cafe").in_text("a caf\u00e9")


def test_a_kept_sense_is_not_a_mention_but_the_word_alone_is() -> None:
    assert not APPLE.in_text("an apple laptop and two apple laptops")
    assert APPLE.spans("an apple laptop and an apple") == [(23, 28)]
    assert Concept("apple").in_text("an apple laptop")


def test_hot_dogs_can_be_kept_when_dogs_are_erased() -> None:
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
def test_well_known_phrases_with_another_meaning_are_kept(name: str, text: str) -> None:
    (concept,) = parse_concepts([name])
    assert not concept.in_text(text)
    assert concept.in_text(f"{text} near a {name}")


def test_a_well_known_phrase_is_erased_if_it_is_a_synonym() -> None:
    (dog,) = parse_concepts(["dog"], ["Hot Dog"], ["dog tag"])
    assert dog.in_text("a hot dog") and not dog.in_text("a corn dog")
    assert not dog.in_text("a dog tag")


def test_a_brand_is_a_mention_unless_it_is_a_kept_sense() -> None:
    assert parse_concepts(["apple"])[0].in_text("an apple laptop")
    assert not parse_concepts(["apple"], (), ["apple laptop"])[0].in_text("an apple laptop")


@pytest.mark.parametrize("word", ["", " ", "\t", "?!"])
def test_a_concept_without_a_word_is_refused(word: str) -> None:
    for fields, option in (
        ({"name": word}, "concept"),
        ({"name": "a", "synonyms": (word,)}, "synonym"),
        ({"name": "a", "keep_senses": (word,)}, "keep_sense"),
    ):
        with pytest.raises(SettingError) as error:
            Concept(**fields)  # type: ignore[arg-type]
        assert str(error.value) == f"{option} {word!r}: needs a word"
        assert error.value.field == option


@pytest.mark.parametrize(
    "phrase", ["a pear", "an apple", "a unicorn", "an hourglass", "an orange cup", "a red apple"]
)
def test_the_article_follows_the_sound(phrase: str) -> None:
    assert with_article(phrase.split(maxsplit=1)[1]) == phrase


def test_a_slug_is_a_file_name() -> None:
    assert slug("Hot dog") == slug("hot_dog") == "hot-dog"
    assert slug(" Caf\u00e9! ") == slug("Cafe\u0301") == "caf\u00e9"


@pytest.mark.parametrize("names", [["apple"] * 40, ["\u82f9\u679c"] * 30])
def test_many_concepts_have_a_name_that_file_systems_take(names: list[str]) -> None:
    number, _, rest = joined_slug(names).partition("-")
    assert int(number) == len(names) and rest.startswith("concepts-")
    assert joined_slug(names[:2]) == f"{names[0]}+{names[1]}"


def test_words_that_differ_in_a_vowel_sign_or_tone_mark_are_different_concepts() -> None:
    forest, aunt = "\u0e1b\u0e48\u0e32", "\u0e1b\u0e49\u0e32"
    day, gift = "\u0926\u093f\u0928", "\u0926\u093e\u0928"
    names = (forest, aunt, day, gift)
    assert tuple(concept.name for concept in parse_concepts(names)) == names


@pytest.mark.parametrize(
    ("text", "remaining"),
    [
        ("an apple", ""),
        ("apples on a plate", "a plate"),
        ("one ripe green apple on a plate", "a plate"),
        ("two big shiny apples on a plate", "a plate"),
        ("a dog next to a red apple in a park", "a dog in a park"),
        ("a man holding an apple by a tree", "a man by a tree"),
        ("a plate behind his apple", "a plate"),
        ("An apple and a dog", "a dog"),
        ("an apple, a dog", "a dog"),
        ("a cup, an apple and a dog", "a cup and a dog"),
        ("an apple next to an apple", ""),
        ("An apple and a dog and two red apples", "a dog"),
        ("an apple laptop and an apple", "an apple laptop"),
        ("the green apple's leaf on a plate", "the leaf on a plate"),
        ("the apples\u2019 leaves", "the leaves"),
    ],
)
def test_removal_takes_determiner_adjectives_and_link(text: str, remaining: str) -> None:
    assert remove_concepts(text, [APPLE])[0] == remaining


@pytest.mark.parametrize(
    ("text", "remaining"),
    [
        ("a dog and apples on a table", "a dog on a table"),
        ("A boy with apples in a park", "A boy in a park"),
    ],
)
def test_removal_keeps_the_noun_before_the_link(text: str, remaining: str) -> None:
    assert remove_concepts(text, [APPLE])[0] == remaining


def test_removal_returns_the_removed_spans() -> None:
    text = "a dog next to a red apple in a park with an apple"
    _, removed = remove_concepts(text, [APPLE])
    assert [text[start:end] for start, end in removed] == ["next to a red apple", "with an apple"]


@pytest.mark.parametrize("text", ["a dog in a park", "a pineapple, by an apple laptop.", ""])
def test_removal_keeps_a_caption_without_mentions_unchanged(text: str) -> None:
    assert remove_concepts(text, [APPLE]) == (text, [])


def test_removal_takes_all_of_several_concepts() -> None:
    caption = "an apple, a dog and a cat on grass"
    assert remove_concepts(caption, [APPLE, Concept("dog")]) == ("a cat on grass", [(0, 19)])


WORDS = [
    "a", "an", "the", "two", "red", "big", "apple", "Apples", "laptop", "pineapple", "apple-pie",
    "dog", "dogs", "and", "with", ",", "holding", "eats", ".", "near", "in", "park",
]  # fmt: skip


@settings(database=None, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_the_remaining_caption_never_mentions_the_concept(text: str) -> None:
    remaining, removed = remove_concepts(text, [APPLE])
    assert not APPLE.in_text(remaining)
    assert bool(removed) == APPLE.in_text(text)
    assert not set(remaining.split()) - set(text.split()) - {"a", "an", "and", "with"}


def test_each_class_is_named_once_in_the_given_order() -> None:
    text = "A laptop, two dogs, a puppy and another dog beside a woman"
    assert named_classes(text, CLASSES) == ["person", "dog", "laptop"]


def test_a_caption_without_classes_names_none() -> None:
    assert named_classes("a pineapple and an apple-pie", CLASSES) == []


def test_a_class_without_a_word_is_never_named() -> None:
    assert named_classes("a dog - and no name", ("-", "", "dog")) == ["dog"]


def test_a_hot_dog_is_not_a_dog() -> None:
    assert named_classes("a hot dog", CLASSES) == ["hot dog"]
    assert named_classes("a dog and a hot dog", CLASSES) == ["dog", "hot dog"]


def test_a_well_known_phrase_does_not_name_the_classes_of_its_words() -> None:
    names = ("car", "bus", "train", "horse", "bear", "teddy bear")
    assert named_classes("a train car at a bus stop", ("car", "bus")) == []
    assert named_classes("a rocking horse and a teddy bear", names) == ["teddy bear"]
    assert named_classes("a train leaves the train station", names) == ["train"]


def test_an_apple_laptop_is_a_laptop_and_not_an_apple() -> None:
    assert named_classes("apple laptops", CLASSES) == ["laptop"]
    assert named_classes("an apple on an apple laptop", CLASSES) == ["apple", "laptop"]


def test_everyday_words_and_irregular_plurals_name_their_class() -> None:
    assert named_classes("Men watch television", CLASSES) == ["person", "tv"]
    assert named_classes("children", CLASSES) == named_classes("people", CLASSES) == ["person"]
