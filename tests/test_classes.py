"""Labelled images and shards are unlearned as caption pairs: the same split, batches and trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled_data import (
    APPLE,
    NAMES,
    jpeg,
    samples,
    write_cifar_binary,
    write_cifar_python,
    write_class_folders,
    write_shard,
)

from erase_sd.data.cifar100 import find_cifar100, holds_test, read_cifar100
from erase_sd.data.classes import TEMPLATES
from erase_sd.data.concept import Concept
from erase_sd.data.dataset import Dataset
from erase_sd.data.images import Entry, hash_image, open_image
from erase_sd.data.pair import SPLITS
from erase_sd.data.readers import read_dataset
from erase_sd.data.split import split_by_concept
from erase_sd.errors import DataError
from erase_sd.files import digest

FRUIT = (Concept("apple"),)


def test_class_becomes_its_captions_at_one_place(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"apple": 4, "sweet_pepper": 6})
    data = read_dataset(tmp_path)
    assert data.classes == ("apple", "sweet pepper")
    assert {item.captions for item in data.items if item.label == "apple"} == {
        ("an apple", "the apple", "a photo of an apple", "a picture of an apple",
         "there is an apple in the picture"),
    }  # fmt: skip
    assert all(len(item.captions) == len(TEMPLATES) for item in data.items)


def test_forget_set_is_the_class_split_70_10_20_by_image(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"apple": 20, "pear": 40, "dog": 40})
    sets = split_by_concept(read_dataset(tmp_path).items, FRUIT)
    counts = [len(sets.images(name, s)) for name in ("forget", "retain") for s in SPLITS]
    assert counts == [14, 2, 4, 56, 8, 16]
    pairs = sets.pairs("forget", "train")
    assert {pair.label for pair in pairs} == {"apple"} and all(pair.mentions for pair in pairs)
    assert {pair.label for pair in sets.pairs("retain", "train")} == {"pear", "dog"}


@pytest.mark.parametrize("write", [write_cifar_python, write_cifar_binary])
def test_cifar_is_read_from_its_own_files_without_copies(tmp_path: Path, write: object) -> None:
    pixels = write(tmp_path, [APPLE, 0, 1, APPLE])  # type: ignore[operator]
    place = next(tmp_path.rglob("test*")).parent
    (place / next(tmp_path.rglob("test*")).name.replace("test", "train")).write_bytes(
        next(tmp_path.rglob("test*")).read_bytes()
    )
    data = read_dataset(tmp_path)
    assert [item.image for item in data.items[:2]] == ["train/00000", "train/00001"]
    assert [item.label for item in data.items] == ["apple", "thing 0", "thing 1", "apple"] * 2
    for item, row in zip(data.items, [*pixels, *pixels], strict=True):
        source = data.path_of(item.image)
        assert isinstance(source, Entry) and hash_image(source) == digest(row.tobytes())
        assert open_image(source).getpixel((1, 0)) == (row[1], row[1024 + 1], row[2048 + 1])


def test_cifar_is_found_by_what_only_it_has_and_read_from_the_files_that_are_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "train").write_bytes(b"of another dataset")
    assert find_cifar100(tmp_path) is None
    place = tmp_path / "cifar-100-binary"
    write_cifar_binary(place, [APPLE, 0])
    assert find_cifar100(tmp_path) == place == find_cifar100(place) and holds_test(place)
    assert read_cifar100(place).format == "CIFAR-100, test"
    (place / "test.bin").rename(place / "train.bin")
    assert not holds_test(place)
    data = read_cifar100(place)
    assert data.format == "CIFAR-100, train" and [*data.files] == ["train/00000", "train/00001"]
    with pytest.raises(DataError, match=r"test\.bin: missing; CIFAR-100's binary version needs it"):
        read_cifar100(place, ("test",))
    for count, names in ((99, [*NAMES[:99], NAMES[0]]), (101, [*NAMES, "pear"])):
        (place / "fine_label_names.txt").write_text("\n".join(names))
        with pytest.raises(DataError, match=f"damaged, {count} class names; needs 100"):
            read_cifar100(place)


def test_shards_keep_places_of_images_and_read_them_again_when_needed(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples(["a woman on a bench", "a dog"]))
    write_shard(tmp_path / "1.tar", samples(["two women", "a cat"]))
    data = read_dataset(tmp_path)
    assert [item.captions for item in data.items] == [
        ("a woman on a bench",), ("a dog",), ("two women",), ("a cat",),
    ]  # fmt: skip
    assert data.classes == () and len(set(data.files)) == 4  # keys repeat from shard to shard
    source = data.path_of("1.tar/00001.jpg")
    assert open_image(source).size == (40, 30) and hash_image(source) == digest(jpeg(1))
    write_shard(tmp_path / "1.tar", samples(["changed"] * 3, 7))
    with pytest.raises(DataError, match=r"1\.tar: 1\.tar/00001\.jpg: not a readable image"):
        open_image(source)


def test_folder_of_flickr30k_with_an_archive_in_it_is_flickr30k(tmp_path: Path) -> None:
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tA dog .\n")
    write_shard(tmp_path / "images.tar", {"1.jpg": jpeg(1)})
    assert read_dataset(tmp_path).format == "the token file"


def folders(tmp_path: Path) -> Dataset:
    write_class_folders(tmp_path, {"apple": 4, "couch": 4, "dog": 4})
    return read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("aple", "not a class of the data; nearest: apple"),
        ("sofa", "not a class of the data; nearest: couch, "),  # a synonym comes first
    ],
)
def test_class_that_the_data_lacks_is_refused_with_the_nearest(
    tmp_path: Path, concept: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split_by_concept(folders(tmp_path).items, (Concept(concept),))


def test_folder_without_pairs_names_the_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no caption pairs; needs Flickr30K") as caught:
        read_dataset(tmp_path)
    assert caught.value.field == "data"
    write_shard(tmp_path / "0.tar", {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    with pytest.raises(DataError, match=r"needs key\.txt beside key\.jpg"):
        read_dataset(tmp_path)
