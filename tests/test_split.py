"""Images are parted whole, by their names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import Captioned, Dataset
from erase_sd.data.split import LEAST, PARTS, Part, Split, parts_of, split, with_images
from erase_sd.errors import DataError

APPLE = Concept("apple")


def images(count: int, caption: str, prefix: str = "") -> list[Captioned]:
    return [Captioned(f"{prefix}{n}.jpg", ("a room", caption)) for n in range(count)]


def where(parts: dict[Part, tuple[Captioned, ...]]) -> dict[str, Part]:
    return {item.image: part for part, items in parts.items() for item in items}


def test_one_caption_takes_all_of_its_image_to_forget() -> None:
    items = images(5, "an apple", "apple") + images(5, "a dog", "dog")
    found = split(items, [APPLE])
    forget = [item for part in found.forget.values() for item in part]
    assert sorted(forget, key=lambda i: i.image) == items[:5]  # "a room" went along
    assert set(where(found.retain)) == {item.image for item in items[5:]}


def test_any_of_several_concepts_takes_an_image_to_forget() -> None:
    items = images(3, "an apple", "apple") + images(3, "a dog", "dog") + images(3, "a cat", "cat")
    found = split(items, [APPLE, Concept("dog")])
    assert set(where(found.forget)) == {item.image for item in items[:6]}


def test_a_kept_sense_alone_is_retained() -> None:
    items = images(3, "an apple", "apple") + images(4, "an apple laptop", "laptop")
    found = split(items, [Concept("apple", keep_senses=("apple laptop",))])
    assert set(where(found.retain)) == {item.image for item in items[3:]}


@pytest.mark.parametrize("count", [3, 4, 9, 10, 59, 100])
def test_parts_are_disjoint_complete_and_none_is_empty(count: int) -> None:
    items = images(count, "a dog")
    parts = parts_of(items)
    assert tuple(parts) == PARTS
    every = [item.image for part in parts.values() for item in part]
    assert sorted(every) == sorted(item.image for item in items)
    assert all(parts.values())


def test_parts_are_seven_one_and_two_tenths() -> None:
    sizes = [len(part) for part in parts_of(images(200, "a dog")).values()]
    assert sizes == [140, 20, 40]


def test_the_order_of_the_images_does_not_matter() -> None:
    items = images(50, "a dog")
    assert parts_of(items) == parts_of(items[::-1])


def test_adding_images_keeps_the_order_of_those_there() -> None:
    items = images(100, "a dog")
    more = where(parts_of(items + images(30, "a dog", "new")))
    assert list(where(parts_of(items))) == [name for name in more if "new" not in name]


def test_an_unknown_concept_lists_near_words() -> None:
    items = images(5, "Apples and an apple") + images(5, "an elephant", "e")
    with pytest.raises(DataError) as error:
        split(items, [Concept("aple")])
    assert "aple: in no caption" in str(error.value)
    assert "near words there: apple, apples" in str(error.value)
    assert "elephant" not in str(error.value)


def test_each_of_several_concepts_has_to_occur() -> None:
    with pytest.raises(DataError, match="--concept zebra: in no caption"):
        split(images(5, "an apple") + images(5, "a dog", "d"), [APPLE, Concept("zebra")])


def test_an_unknown_concept_with_no_near_word_lists_some_words() -> None:
    with pytest.raises(DataError) as error:
        split(images(5, "an elephant"), [Concept("zzzyx")])
    assert "elephant" in str(error.value)


def test_a_concept_in_every_image_leaves_nothing_to_retain() -> None:
    with pytest.raises(DataError, match=r"concept apple: every image mentions it"):
        split(images(9, "an apple"), [APPLE])


def test_a_concept_in_too_few_images_is_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"concept apple: only 2 forget images; needs at least 3"):
        split(images(2, "an apple") + images(9, "a dog", "d"), [APPLE])


def test_too_few_images_without_the_concept_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"concept apple: only 1 retain images; needs at least 3"):
        split(images(9, "an apple") + images(1, "a dog", "d"), [APPLE])


def standard(caption: str, prefix: str, *sizes: int) -> list[Captioned]:
    """Images of a dataset with a split of its own, so many in each part."""
    return [
        Captioned(f"{prefix}-{part}-{n}.jpg", (caption,), part)
        for part, size in zip(PARTS, sizes, strict=True)
        for n in range(size)
    ]


def test_the_datasets_own_split_is_kept() -> None:
    items = standard("a dog", "dog", 80, LEAST, LEAST + 5)
    parts = parts_of(items[::-1])
    assert all(item.part == part for part in PARTS for item in parts[part])
    assert [len(inside) for inside in parts.values()] == [80, LEAST, LEAST + 5]


@pytest.mark.parametrize(
    "sizes", [(80, LEAST - 1, 20), (80, 20, LEAST - 1), (5, 20, 20), (80, 0, 0)]
)
def test_a_rare_concept_is_split_by_the_names(sizes: tuple[int, int, int]) -> None:
    items = standard("a dog", "dog", *sizes)
    unmarked = [Captioned(item.image, item.captions) for item in items]
    assert where(parts_of(items)) == where(parts_of(unmarked))
    assert any(item.part != part for part, of in parts_of(items).items() for item in of)


def test_a_rare_concept_leaves_the_other_side_its_split() -> None:
    others = standard("a dog", "dog", 80, 20, 20)
    found = split(standard("an apple", "apple", 8, 1, 1) + others, [APPLE])
    assert [len(part) for part in found.forget.values()] == [7, 1, 2]
    assert where(found.retain) == {item.image: item.part for item in others}


def folder_of(items: list[Captioned], missing: set[str]) -> Dataset:
    files = {item.image: Path(item.image) for item in items if item.image not in missing}
    return Dataset(Path("data"), Path("data/x"), "a format", "0", tuple(items), files)


def test_missing_images_are_left_out_and_move_no_other() -> None:
    items = images(20, "an apple", "apple") + images(20, "a dog", "dog")
    sides = split(items, [APPLE])
    lost = {sides.forget["train"][0].image, sides.retain["held-out"][1].image}
    left = with_images(sides, folder_of(items, lost))
    for before, after in ((sides.forget, left.forget), (sides.retain, left.retain)):
        assert where(after) == {i: p for i, p in where(before).items() if i not in lost}
    assert with_images(sides, folder_of(items, set())) is sides


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("every", "40 of 40 images are missing, first apple0.jpg; none is left to forget (train)"),
        (
            "held-out",
            "4 of 40 images are missing, first {first}; none is left to retain (held-out)",
        ),
    ],
)
def test_a_part_whose_images_are_all_missing_is_refused(gone: str, reason: str) -> None:
    items = images(20, "an apple", "apple") + images(20, "a dog", "dog")
    sides = split(items, [APPLE])
    held_out = {item.image for item in sides.retain["held-out"]}
    lost = held_out if gone == "held-out" else {item.image for item in items}
    first = next(item.image for item in items if item.image in lost)
    with pytest.raises(DataError) as error:
        with_images(sides, folder_of(items, lost))
    assert str(error.value) == f"--data data: {reason.format(first=first)}"


def test_a_split_of_any_kind_shares_no_image() -> None:
    items = standard("an apple", "apple", 40, 12, 12) + standard("a dog", "dog", 40, 12, 3)
    found: Split = split(items, [APPLE])
    every = [item.image for side in (found.forget, found.retain) for p in PARTS for item in side[p]]
    assert sorted(every) == sorted(item.image for item in items)
