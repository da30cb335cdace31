"""Forget and retain sets are split by image, by the image names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from erase_sd.data.concept import Concept
from erase_sd.data.dataset import CaptionedImage, Dataset
from erase_sd.data.pair import CONCEPT_SETS, SPLITS, CaptionPair, ConceptSet, Split
from erase_sd.data.split import (
    MIN_SPLIT_IMAGES,
    ConceptSets,
    assign_splits,
    hash_order,
    split_by_concept,
)
from erase_sd.errors import DataError

APPLE = Concept("apple")


def images(count: int, caption: str, prefix: str = "") -> list[CaptionedImage]:
    return [CaptionedImage(f"{prefix}{n}.jpg", ("a room", caption)) for n in range(count)]


def names(sets: ConceptSets, concept_set: ConceptSet) -> dict[str, Split]:
    """Split of each image of a set."""
    return {item.image: split for split in SPLITS for item in sets.images(concept_set, split)}


def split_of(splits: dict[Split, tuple[CaptionedImage, ...]]) -> dict[str, Split]:
    return {item.image: split for split, items in splits.items() for item in items}


def test_one_caption_puts_its_whole_image_into_the_forget_set() -> None:
    items = images(5, "an apple", "apple") + images(5, "a dog", "dog")
    sets = split_by_concept(items, [APPLE])
    assert set(names(sets, "forget")) == {item.image for item in items[:5]}
    assert set(names(sets, "retain")) == {item.image for item in items[5:]}


def test_any_of_several_concepts_puts_an_image_into_the_forget_set() -> None:
    items = images(3, "an apple", "apple") + images(3, "a dog", "dog") + images(3, "a cat", "cat")
    sets = split_by_concept(items, [APPLE, Concept("dog")])
    assert set(names(sets, "forget")) == {item.image for item in items[:6]}


def test_a_kept_sense_alone_is_retained() -> None:
    items = images(3, "an apple", "apple") + images(4, "an apple laptop", "laptop")
    sets = split_by_concept(items, [Concept("apple", keep_senses=("apple laptop",))])
    assert set(names(sets, "retain")) == {item.image for item in items[3:]}


def test_training_images_with_a_mined_mention_alone_leave_the_retain_set() -> None:
    items = images(10, "an apple", "apple") + images(20, "a dog", "dog")
    sets = split_by_concept(items + images(20, "a pippin", "pippin"), [APPLE])
    more = sets.also_mentioned([Concept("apple", ("pippin",))])
    before, after = names(sets, "retain"), names(more, "retain")
    left = {name for name, split in before.items() if name[0] == "d" or split != "train"}
    assert len(left) < len(before) and after == {name: before[name] for name in left}


def test_a_mined_mention_counts_in_training_captions_of_the_forget_set_alone() -> None:
    items = [CaptionedImage(f"{n}.jpg", ("an apple", "a pippin")) for n in range(10)]
    sets = split_by_concept(items + images(10, "a dog", "dog"), [APPLE])
    more = sets.also_mentioned([Concept("apple", ("pippin",))])
    mentions = {
        split: [pair.mentions for pair in more.pairs("forget", split)][:2] for split in SPLITS
    }
    assert mentions == {
        "train": [("apple",)] * 2, "validation": [("apple",), ()], "held-out": [("apple",), ()],
    }  # fmt: skip
    assert not any(pair.mentions for pair in more.pairs("retain", "train"))


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_carry_image_mentions_set_and_split(split: Split) -> None:
    items = images(3, "an apple and a dog", "apple") + images(3, "a cat", "cat")
    sets = split_by_concept(items, [APPLE, Concept("dog")])
    for pair in sets.pairs("forget", split) + sets.pairs("retain", split):
        mentions = ("apple", "dog") if "apple" in pair.caption else ()
        concept_set: ConceptSet = "forget" if "apple" in (pair.image or "") else "retain"
        assert pair == CaptionPair(
            caption=pair.caption, image=pair.image, mentions=mentions, set=concept_set, split=split
        )
    [item] = sets.images("forget", split)
    assert [pair.caption for pair in sets.pairs("forget", split)] == list(item.captions)


@pytest.mark.parametrize("count", [3, 4, 9, 10, 59, 100])
def test_splits_are_disjoint_complete_and_none_is_empty(count: int) -> None:
    items = images(count, "a dog")
    splits = assign_splits(items)
    assert tuple(splits) == SPLITS
    every = [item.image for inside in splits.values() for item in inside]
    assert sorted(every) == sorted(item.image for item in items)
    assert all(splits.values())


def test_splits_are_seventy_ten_and_twenty_percent() -> None:
    for count, expected in ((200, [140, 20, 40]), (28, [19, 3, 6])):  # rounded, not cut off
        splits = assign_splits(images(count, "a dog"))
        assert [len(inside) for inside in splits.values()] == expected


def test_the_order_of_the_images_does_not_matter() -> None:
    items = images(50, "a dog")
    assert assign_splits(items) == assign_splits(items[::-1])


def test_the_order_of_image_names_is_that_of_all_earlier_runs() -> None:
    items = images(6, "a dog")
    assert [item.image[0] for item in hash_order(items)] == list("210354")
    assert [item.image[0] for item in hash_order(items, seed=1)] == list("250143")


def test_adding_images_keeps_the_order_of_the_others() -> None:
    items = images(100, "a dog")
    more = split_of(assign_splits(items + images(30, "a dog", "new")))
    assert list(split_of(assign_splits(items))) == [name for name in more if "new" not in name]


def test_an_unknown_concept_lists_near_words() -> None:
    items = images(5, "Apples and an apple") + images(5, "an elephant", "e")
    with pytest.raises(DataError) as error:
        split_by_concept(items, [Concept("aple")])
    assert str(error.value) == (
        "concept aple: in no caption of the data; near words there: apple, apples"
    )


def test_each_of_several_concepts_has_to_occur() -> None:
    with pytest.raises(DataError, match=r"^concept zebra: in no caption"):
        split_by_concept(images(5, "an apple") + images(5, "a dog", "d"), [APPLE, Concept("zebra")])


def test_an_unknown_concept_without_near_words_lists_some_words() -> None:
    with pytest.raises(DataError, match=r"data; words there: .*elephant"):
        split_by_concept(images(5, "an elephant"), [Concept("zzzyx")])


@pytest.mark.parametrize(
    ("forget", "retain", "reason"),
    [
        (9, 0, "every image mentions it; needs images without it for the retain set"),
        (2, 9, "the forget set needs at least 3 images, got 2"),
        (9, 1, "the retain set needs at least 3 images, got 1"),
    ],
)
def test_a_set_of_fewer_than_three_images_is_refused(forget: int, retain: int, reason: str) -> None:
    with pytest.raises(DataError) as error:
        split_by_concept(images(forget, "an apple") + images(retain, "a dog", "d"), [APPLE])
    assert str(error.value) == f"concept apple: {reason}"


def standard(caption: str, prefix: str, *sizes: int) -> list[CaptionedImage]:
    """Images of a dataset with a split of its own, with this many images in each."""
    return [
        CaptionedImage(f"{prefix}-{split}-{n}.jpg", (caption,), split)
        for split, size in zip(SPLITS, sizes, strict=True)
        for n in range(size)
    ]


def test_the_datasets_own_split_is_kept() -> None:
    items = standard("a dog", "dog", 80, MIN_SPLIT_IMAGES, MIN_SPLIT_IMAGES + 5)
    splits = assign_splits(items[::-1])
    assert all(item.split == split for split in SPLITS for item in splits[split])
    assert list(map(len, splits.values())) == [80, MIN_SPLIT_IMAGES, MIN_SPLIT_IMAGES + 5]


@pytest.mark.parametrize(
    "sizes",
    [(80, MIN_SPLIT_IMAGES - 1, 20), (80, 20, MIN_SPLIT_IMAGES - 1), (5, 20, 20), (80, 0, 0)],
)
def test_a_rare_concept_is_split_by_name_instead(sizes: tuple[int, int, int]) -> None:
    items = standard("a dog", "dog", *sizes)
    unmarked = [CaptionedImage(item.image, item.captions) for item in items]
    splits = assign_splits(items)
    assert split_of(splits) == split_of(assign_splits(unmarked))
    assert any(item.split != split for split, inside in splits.items() for item in inside)


def test_a_rare_concept_leaves_the_retain_set_its_own_split() -> None:
    others = standard("a dog", "dog", 80, 20, 20)
    sets = split_by_concept(standard("an apple", "apple", 8, 1, 1) + others, [APPLE])
    assert [len(sets.images("forget", split)) for split in SPLITS] == [7, 1, 2]
    assert names(sets, "retain") == {item.image: item.split for item in others}


def folder_of(items: list[CaptionedImage], missing: set[str]) -> Dataset:
    files = {item.image: Path(item.image) for item in items if item.image not in missing}
    return Dataset(Path("data"), Path("data/captions"), "a test", "", tuple(items), files)


def test_missing_images_are_left_out_and_no_other_image_moves() -> None:
    items = images(20, "an apple", "apple") + images(20, "a dog", "dog")
    sets = split_by_concept(items, [APPLE])
    missing = {sets.images("forget", "train")[0].image, sets.images("retain", "held-out")[1].image}
    missing.add(sets.images("forget", "validation")[0].image)  # the other one of two stays
    present = sets.present(folder_of(items, missing))
    for concept_set in CONCEPT_SETS:
        before = names(sets, concept_set)
        assert names(present, concept_set) == {
            image: split for image, split in before.items() if image not in missing
        }
    assert sets.present(folder_of(items, set())) is sets


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (
            "every",
            "40 of 40 images are missing, first apple0.jpg; the train split of the forget set",
        ),
        ("held-out", "4 of 40 images are missing, first {}; the held-out split of the retain set"),
    ],
)
def test_a_split_whose_images_are_all_missing_is_refused(missing: str, reason: str) -> None:
    items = images(20, "an apple", "apple") + images(20, "a dog", "dog")
    sets = split_by_concept(items, [APPLE])
    held_out = {item.image for item in sets.images("retain", "held-out")}
    gone = held_out if missing == "held-out" else {item.image for item in items}
    first = next(item.image for item in items if item.image in gone)
    with pytest.raises(DataError) as error:
        sets.present(folder_of(items, gone))
    assert str(error.value) == f"data data: {reason.format(first)} needs one"


def test_no_image_is_in_two_sets_or_splits() -> None:
    items = standard("an apple", "apple", 40, 12, 12) + standard("a dog", "dog", 40, 12, 3)
    sets = split_by_concept(items, [APPLE])
    every = [item.image for s in CONCEPT_SETS for split in SPLITS for item in sets.images(s, split)]
    assert sorted(every) == sorted(item.image for item in items)
