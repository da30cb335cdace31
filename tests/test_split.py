"""Images are parted whole, by their names and the seed alone."""

from __future__ import annotations

import pytest

from erase_sd.errors import DataError
from erase_sd.pairs.concepts import Concept
from erase_sd.pairs.flickr30k import Captioned
from erase_sd.pairs.split import PARTS, Part, parts_of, split

APPLE = Concept("apple")


def images(count: int, caption: str, prefix: str = "") -> list[Captioned]:
    return [Captioned(f"{prefix}{n}.jpg", ("a room", caption)) for n in range(count)]


def where(parts: dict[Part, tuple[Captioned, ...]]) -> dict[str, Part]:
    return {item.image: part for part, items in parts.items() for item in items}


def test_one_caption_takes_all_of_its_image_to_forget() -> None:
    items = images(5, "an apple", "apple") + images(5, "a dog", "dog")
    found = split(items, [APPLE], seed=0)
    forget = [item for part in found.forget.values() for item in part]
    assert sorted(forget, key=lambda i: i.image) == items[:5]  # "a room" went along
    assert set(where(found.retain)) == {item.image for item in items[5:]}


def test_any_of_several_concepts_takes_an_image_to_forget() -> None:
    items = images(3, "an apple", "apple") + images(3, "a dog", "dog") + images(3, "a cat", "cat")
    found = split(items, [APPLE, Concept("dog")], seed=0)
    assert set(where(found.forget)) == {item.image for item in items[:6]}


def test_a_kept_sense_alone_is_retained() -> None:
    items = images(3, "an apple", "apple") + images(4, "an apple laptop", "laptop")
    found = split(items, [Concept("apple", keep_senses=("apple laptop",))], seed=0)
    assert set(where(found.retain)) == {item.image for item in items[3:]}


@pytest.mark.parametrize("count", [3, 4, 9, 10, 59, 100])
def test_parts_are_disjoint_complete_and_none_is_empty(count: int) -> None:
    items = images(count, "a dog")
    parts = parts_of(items, seed=0)
    assert tuple(parts) == PARTS
    every = [item.image for part in parts.values() for item in part]
    assert sorted(every) == sorted(item.image for item in items)
    assert all(parts.values())


def test_parts_are_seven_one_and_two_tenths() -> None:
    sizes = [len(part) for part in parts_of(images(200, "a dog"), seed=3).values()]
    assert sizes == [140, 20, 40]


def test_the_order_of_the_images_does_not_matter() -> None:
    items = images(50, "a dog")
    assert parts_of(items, seed=1) == parts_of(items[::-1], seed=1)


def test_adding_images_keeps_the_order_of_those_there() -> None:
    items = images(100, "a dog")
    more = where(parts_of(items + images(30, "a dog", "new"), seed=0))
    assert list(where(parts_of(items, seed=0))) == [name for name in more if "new" not in name]


def test_the_seed_changes_the_parts() -> None:
    items = images(100, "a dog")
    assert parts_of(items, seed=0) == parts_of(items, seed=0)
    assert where(parts_of(items, seed=0)) != where(parts_of(items, seed=1))


def test_an_unknown_concept_lists_near_words() -> None:
    items = images(5, "Apples and an apple") + images(5, "an elephant", "e")
    with pytest.raises(DataError) as error:
        split(items, [Concept("aple")], seed=0)
    assert "aple: in no caption" in str(error.value)
    assert "near words there: apple, apples" in str(error.value)
    assert "elephant" not in str(error.value)


def test_each_of_several_concepts_has_to_occur() -> None:
    with pytest.raises(DataError, match="--concept zebra: in no caption"):
        split(images(5, "an apple") + images(5, "a dog", "d"), [APPLE, Concept("zebra")], seed=0)


def test_an_unknown_concept_with_no_near_word_lists_some_words() -> None:
    with pytest.raises(DataError) as error:
        split(images(5, "an elephant"), [Concept("zzzyx")], seed=0)
    assert "elephant" in str(error.value)


def test_a_concept_in_every_image_leaves_nothing_to_retain() -> None:
    with pytest.raises(DataError, match=r"concept apple: every image mentions it"):
        split(images(9, "an apple"), [APPLE], seed=0)


def test_a_concept_in_too_few_images_is_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"concept apple: only 2 forget images; needs at least 3"):
        split(images(2, "an apple") + images(9, "a dog", "d"), [APPLE], seed=0)


def test_too_few_images_without_the_concept_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"concept apple: only 1 retain images; needs at least 3"):
        split(images(9, "an apple") + images(1, "a dog", "d"), [APPLE], seed=0)
