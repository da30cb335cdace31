"""Image folders are recognised by their contents; whatever is wrong with one is a one-line error."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from labelled_data import (
    APPLE,
    NAMES,
    PEPPER,
    jpeg,
    python2,
    samples,
    write_cifar_binary,
    write_cifar_python,
    write_class_folders,
    write_shard,
)
from PIL import Image

from erase_sd.data.classes import matching_classes
from erase_sd.data.concept import Concept
from erase_sd.data.pair import CaptionPair
from erase_sd.errors import DataError
from erase_sd.evaluation.galleries import Gallery, GalleryImage, gallery, open_gallery, shards
from erase_sd.evaluation.galleries.gallery import balanced, captioned_images

FRUIT = (Concept("apple"),)
LABELS = [APPLE, 0, PEPPER, APPLE]


@pytest.fixture
def plain_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as the command has it.

    The tiny world's detector imports ultralytics into this process, which patches Pillow to install a
    plug-in for every unreadable file.
    """
    if patches := sys.modules.get("ultralytics.utils.patches"):
        monkeypatch.setattr(Image, "open", patches._image_open)


def labels_and_sets(opened: Gallery) -> list[tuple[str | None, str]]:
    return [(image.label, image.set) for image in opened.images]


def captions_of(image: GalleryImage) -> tuple[str, ...]:
    return tuple(pair.caption for pair in image.pairs)


@pytest.mark.parametrize("write", [write_cifar_python, write_cifar_binary])
def test_both_versions_of_cifar_give_the_same_images_and_classes(
    tmp_path: Path, write: object
) -> None:
    data = write(tmp_path / "c", LABELS)  # type: ignore[operator]
    opened = open_gallery(tmp_path / "c", FRUIT)
    assert labels_and_sets(opened) == [
        ("apple", "forget"), ("thing 0", "retain"), ("sweet pepper", "retain"), ("apple", "forget"),
    ]  # fmt: skip
    assert opened.forget_classes == {"apple"} and opened.classes == [
        "apple",
        "sweet pepper",
        "thing 0",
    ]
    for gallery_image, row in zip(opened.images, data, strict=True):
        image = gallery_image.open()
        assert (image.mode, image.size) == ("RGB", (32, 32))
        # The second pixel of the first row, in planes of red, green and blue.
        assert image.getpixel((1, 0)) == (row[1], row[1024 + 1], row[2048 + 1])


class Bomb:
    """Its pickle makes a folder when it is loaded by plain `pickle`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("file", ["test", "meta"])
def test_pickle_that_names_anything_else_is_refused_and_never_run(
    tmp_path: Path, file: str
) -> None:
    write_cifar_python(tmp_path, LABELS)
    path = tmp_path / "cifar-100-python" / file
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(
        DataError, match=rf"{file}: names posix\.mkdir, which CIFAR-100 does not contain"
    ):
        open_gallery(tmp_path, FRUIT)
    assert not Path("exploded").exists()


def test_attributes_of_an_arrays_globals_are_refused_too(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, LABELS)
    # An allowed name, followed by an attribute of it.
    walk = b"\x80\x02cnumpy\nndarray.__class__\n."
    (tmp_path / "cifar-100-python" / "test").write_bytes(walk)
    with pytest.raises(
        DataError, match=r"names numpy\.ndarray\.__class__, which CIFAR-100 does not contain"
    ):
        open_gallery(tmp_path, FRUIT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"fine_labels": [APPLE, 100, 0, 0]}, "a label is 100; needs 0 to 99"),
        ({b"fine_labels": [APPLE, -1, 0, 0]}, "a label is -1; needs 0 to 99"),
        ({b"fine_labels": [APPLE, 0, 0]}, "12288 bytes for 3 images; needs 3072 each"),
        ({b"fine_labels": [b"apple"] * 4}, "test: damaged .*labels as integers"),
        ({b"fine_labels": [True] * 4}, "test: damaged .*labels as integers"),
        ({b"data": np.zeros((4, 100), np.uint8)}, "400 bytes for 4 images"),
        ({b"data": b"none"}, "test: damaged"),
    ],
)
def test_damaged_batch_is_named(tmp_path: Path, change: dict[bytes, object], message: str) -> None:
    data = write_cifar_python(tmp_path, LABELS)
    batch = {b"fine_labels": LABELS, b"data": data} | change
    (tmp_path / "cifar-100-python" / "test").write_bytes(python2(batch))
    with pytest.raises(DataError, match=message):
        open_gallery(tmp_path, FRUIT)


@pytest.mark.parametrize(("old", "new"), [(b"U\x02u1", b"U\x02i1"), (b"tb\x89", b"tb\x88")])
def test_pixels_of_another_type_or_order_are_refused(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    write_cifar_python(tmp_path, LABELS)
    path = tmp_path / "cifar-100-python" / "test"
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match="needs images as bytes in row order"):
        open_gallery(tmp_path, FRUIT)


@pytest.mark.parametrize("file", ["test", "meta"])
def test_truncated_or_missing_file_of_cifar_is_named(tmp_path: Path, file: str) -> None:
    write_cifar_python(tmp_path, LABELS)
    path = tmp_path / "cifar-100-python" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{file}: damaged") as caught:
        open_gallery(tmp_path, FRUIT)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=rf"{file}: missing; CIFAR-100's python version needs it"):
        open_gallery(tmp_path, FRUIT)


def test_damaged_binary_version_is_named(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path, LABELS)
    test, names = tmp_path / "test.bin", tmp_path / "fine_label_names.txt"
    whole = test.read_bytes()
    test.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"12295 bytes; needs a multiple of 3074"):
        open_gallery(tmp_path, FRUIT)
    test.write_bytes(whole[:1] + b"\xff" + whole[2:])
    with pytest.raises(DataError, match=r"test\.bin: damaged, a label is 255"):
        open_gallery(tmp_path, FRUIT)
    test.write_bytes(b"")
    with pytest.raises(DataError, match=r"0 bytes for 0 images"):
        open_gallery(tmp_path, FRUIT)
    test.write_bytes(whole)
    names.write_text("\n".join(NAMES[:99]))
    with pytest.raises(DataError, match=r"99 class names; needs 100"):
        open_gallery(tmp_path, FRUIT)
    test.unlink()
    with pytest.raises(DataError, match=r"test\.bin: missing"):
        open_gallery(tmp_path, FRUIT)


def test_class_folders_are_labelled_by_their_names(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"apple": 2, "hot_dog": 1, "empty": 0})
    (tmp_path / "apple" / "notes.txt").write_text("not an image")
    opened = open_gallery(tmp_path, FRUIT)
    assert labels_and_sets(opened) == [
        ("apple", "forget"),
        ("apple", "forget"),
        ("hot dog", "retain"),
    ]
    assert opened.images[0].open().size == (40, 30)


def test_unreadable_images_in_class_folders_are_counted_named_and_left_out(
    tmp_path: Path, plain_pillow: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_class_folders(tmp_path, {"apple": 1, "dog": 2})
    (tmp_path / "dog" / "0.jpg").write_bytes(b"not an image")
    assert [image.label for image in open_gallery(tmp_path, FRUIT).images] == ["apple", "dog"]
    assert "1 unreadable images are left out, first dog/0.jpg" in caplog.text


def test_images_too_large_to_open_are_left_out(
    tmp_path: Path, plain_pillow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("apple", "pear", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    size = Image.open(io.BytesIO(jpeg(1))).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1] - 1)
    with pytest.raises(DataError, match="needs CIFAR-100"):
        open_gallery(tmp_path, FRUIT)


@pytest.mark.parametrize("counts", [{}, {"apple": 3}, {"apple": 0, "dog": 0}])
def test_unrecognised_folder_names_the_formats(tmp_path: Path, counts: dict[str, int]) -> None:
    write_class_folders(tmp_path, counts)
    with pytest.raises(
        DataError, match=r"needs CIFAR-100, \*\.tar shards, or at least two folders"
    ):
        open_gallery(tmp_path, FRUIT)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_gallery(tmp_path / "nowhere", FRUIT)


def test_concept_without_a_class_is_refused_with_the_nearest_ones(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"apple": 1, "couch": 1, "dog": 1})
    with pytest.raises(DataError, match=r"has no class aple; nearest: apple"):
        open_gallery(tmp_path, (Concept("aple"),))
    with pytest.raises(DataError, match="has no class elephant"):
        open_gallery(tmp_path, (Concept("apple"), Concept("elephant")))
    with pytest.raises(DataError, match="the concepts name every class"):
        open_gallery(tmp_path, (Concept("apple"), Concept("couch"), Concept("dog")))
    assert open_gallery(tmp_path, (Concept("sofa"),)).forget_classes == {"couch"}


def test_concept_names_a_class_by_its_name_or_a_synonym_of_either() -> None:
    classes = ("apple", "bicycle", "couch", "hot dog", "laptop", "pineapple")
    assert matching_classes(Concept("apple"), classes) == {"apple"}
    assert matching_classes(Concept("sofa"), classes) == {"couch"}
    assert matching_classes(Concept("two-wheeler", ("bicycle",)), classes) == {"bicycle"}
    assert matching_classes(Concept("dog", keep_senses=("hot dog",)), classes) == set()


def test_shards_give_captions_sets_and_classes(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples(["an apple on a plate", "a dog and a cat"]))
    write_shard(tmp_path / "1.tar", samples(["a quiet house", "a green  apple", "a dog"], 2))
    opened = open_gallery(tmp_path, FRUIT)
    assert [(captions_of(image), image.set, image.label) for image in opened.images] == [
        (("an apple on a plate",), "forget", "apple"),
        (("a green apple",), "forget", "apple"),
        (("a dog and a cat",), "retain", None),  # two classes
        (("a quiet house",), "retain", None),  # none
        (("a dog",), "retain", "dog"),
    ]
    assert opened.details["shards"] == ["0.tar", "1.tar"]
    assert opened.images[0].open().size == (40, 30)


def test_unusable_entries_of_a_shard_are_left_out_and_counted(
    tmp_path: Path, plain_pillow: None, caplog: pytest.LogCaptureFixture
) -> None:
    files = samples(["an apple", "a dog", "a cat"])
    files["00001.jpg"] = b"not an image"
    files |= {"7.jpg": jpeg(7), "8.txt": b"a bird", "9.jpg": jpeg(9), "9.txt": b"\xff\xfe"}
    write_shard(tmp_path / "0.tar", files)
    opened = open_gallery(tmp_path, FRUIT)
    assert [captions_of(image) for image in opened.images] == [("an apple",), ("a cat",)]
    assert "4 samples without a caption or a readable image are left out" in caplog.text
    assert opened.details["left_out"] == 4


def test_shards_are_read_until_both_sets_have_their_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (shards, gallery):
        monkeypatch.setattr(module, "MAX_IMAGES", 4)
    write_shard(tmp_path / "0.tar", samples(["an apple"] * 3 + ["a dog"] * 3))
    (tmp_path / "1.tar").write_bytes(b"never read: both sets have their half")
    assert [side for _, side in labels_and_sets(open_gallery(tmp_path, FRUIT))] == [
        "forget"
    ] * 2 + ["retain"] * 2


def test_every_concept_is_among_the_images_however_late_in_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (shards, gallery):
        monkeypatch.setattr(module, "MAX_IMAGES", 4)
    write_shard(tmp_path / "0.tar", samples(["an apple"] * 5 + ["a dog"] * 3 + ["a pear"]))
    opened = open_gallery(tmp_path, (*FRUIT, Concept("pear")))
    captions = [captions_of(image)[0] for image in opened.images]
    assert captions == ["a pear", "an apple", "a dog", "a dog"]


def test_half_of_the_images_are_forget_images_unless_a_set_has_fewer() -> None:
    many = list(range(2000))
    for forget, retain, expected in (
        (2000, 2000, 500),
        (2000, 100, 900),
        (30, 2000, 30),
        (3, 4, 3),
    ):
        chosen = balanced([f"f{i}" for i in many[:forget]], [f"r{i}" for i in many[:retain]])
        assert len(chosen) == min(1000, forget + retain)
        assert sum(name.startswith("f") for name in chosen) == expected
        assert chosen[0] == "f0" and "r0" in chosen


@pytest.mark.parametrize(
    "form", ["garbage", "truncated", "packed", "header", "cut in a header", "cut before a header"]
)
def test_damaged_shard_is_named(tmp_path: Path, form: str) -> None:
    import gzip

    path = tmp_path / "3.tar"
    write_shard(path, samples(["an apple", "a dog"]))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:  # which takes a damaged header for the end of the archive
        third = tar.getmembers()[2].offset
    broken = {"garbage": b"not a tar file" * 100, "truncated": whole[:700],
              "packed": gzip.compress(whole),
              "header": whole[:third] + b"?" + whole[third + 1:],
              "cut in a header": whole[:third + 100], "cut before a header": whole[:third]}  # fmt: skip
    path.write_bytes(broken[form])
    with pytest.raises(DataError, match=r"3\.tar: damaged shard \(.+\)") as caught:
        open_gallery(tmp_path, FRUIT)
    assert "\n" not in str(caught.value)


def test_shards_without_the_concept_or_without_a_retain_image_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples(["a dog", "a cat"]))
    with pytest.raises(DataError, match="no caption with a readable image mentions apple"):
        open_gallery(tmp_path, FRUIT)
    write_shard(tmp_path / "0.tar", samples(["an apple"]))
    with pytest.raises(DataError, match="every caption mentions a concept"):
        open_gallery(tmp_path, FRUIT)


def test_class_names_do_not_span_two_captions() -> None:
    pairs = tuple(
        CaptionPair(caption=text, image="0.jpg", mentions=(), set="retain", split="held-out")
        for text in ("what is hot", "dog on a bed")
    )
    [image] = captioned_images([(pairs, lambda: pytest.fail("opened"))], FRUIT)
    assert image.label is None  # a dog and a bed, not a hot dog
