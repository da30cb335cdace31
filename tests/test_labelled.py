"""Evaluation data recognised by what lies there; whatever is wrong with it is one line."""

from __future__ import annotations

import builtins
import os
import pickle
import sys
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

from erase_sd.data.concept import Concept
from erase_sd.errors import DataError, SettingError
from erase_sd.evaluation.galleries import Gallery, gallery, open_folder
from erase_sd.evaluation.galleries.gallery import choose, classes_of, of_captions

FRUIT = (Concept("apple"),)
LABELS = [APPLE, 0, PEPPER, APPLE]


@pytest.fixture
def plain_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as the program has it: the tiny world's detector imports ultralytics in this process,
    which has every file that is no image tried with a plug-in that it installs."""
    if changed := sys.modules.get("ultralytics.utils.patches"):
        monkeypatch.setattr(Image, "open", changed._image_open)


def sides(found: Gallery) -> list[tuple[str | None, str]]:
    return [(picture.label, picture.side) for picture in found.pictures]


@pytest.mark.parametrize("write", [write_cifar_python, write_cifar_binary])
def test_both_versions_of_cifar_give_the_same_images_and_classes(
    tmp_path: Path, write: object
) -> None:
    data = write(tmp_path / "c", LABELS)  # type: ignore[operator]
    found = open_folder(tmp_path / "c", FRUIT)
    assert sides(found) == [
        ("apple", "forget"), ("thing 0", "retain"), ("sweet pepper", "retain"), ("apple", "forget"),
    ]  # fmt: skip
    assert found.forgotten == {"apple"} and found.classes == ["apple", "sweet pepper", "thing 0"]
    for picture, row in zip(found.pictures, data, strict=True):
        image = picture.open()
        assert (image.mode, image.size) == ("RGB", (32, 32))
        # Planes of red, green, blue, each row by row: the second pixel of the first row.
        assert image.getpixel((1, 0)) == (row[1], row[1024 + 1], row[2048 + 1])


class Bomb:
    """Its pickle makes a folder when it is loaded by plain `pickle`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("file", ["test", "meta"])
def test_a_pickle_that_names_anything_else_is_refused_and_never_run(
    tmp_path: Path, file: str
) -> None:
    write_cifar_python(tmp_path, LABELS)
    path = tmp_path / "cifar-100-python" / file
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(DataError, match=rf"{file}: names posix\.mkdir, which is no part of CIFAR"):
        open_folder(tmp_path, FRUIT)
    assert not Path("exploded").exists()


def test_what_an_array_is_pickled_with_runs_nothing_either(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, LABELS)
    # From a name that is allowed, a walk over its attributes.
    walk = b"\x80\x02cnumpy\nndarray.__class__\n."
    (tmp_path / "cifar-100-python" / "test").write_bytes(walk)
    with pytest.raises(DataError, match=r"names numpy\.ndarray\.__class__, which is no part"):
        open_folder(tmp_path, FRUIT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"fine_labels": [APPLE, 100, 0, 0]}, "a label is 100; needs 0 to 99"),
        ({b"fine_labels": [APPLE, -1, 0, 0]}, "a label is -1; needs 0 to 99"),
        ({b"fine_labels": [APPLE, 0, 0]}, "12288 bytes of 3 images; each needs 3072"),
        ({b"fine_labels": [b"apple"] * 4}, "test or meta is damaged .*labels no numbers"),
        ({b"data": np.zeros((4, 100), np.uint8)}, "400 bytes of 4 images"),
        ({b"data": b"none"}, "test or meta is damaged"),
    ],
)
def test_damaged_batches_are_named(
    tmp_path: Path, change: dict[bytes, object], message: str
) -> None:
    data = write_cifar_python(tmp_path, LABELS)
    batch = {b"fine_labels": LABELS, b"data": data} | change
    (tmp_path / "cifar-100-python" / "test").write_bytes(python2(batch))
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, FRUIT)


@pytest.mark.parametrize("file", ["test", "meta"])
def test_a_truncated_or_missing_file_of_cifar_is_named(tmp_path: Path, file: str) -> None:
    write_cifar_python(tmp_path, LABELS)
    path = tmp_path / "cifar-100-python" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="test or meta is damaged") as caught:
        open_folder(tmp_path, FRUIT)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=rf"{file}: missing; CIFAR-100's python version has it"):
        open_folder(tmp_path, FRUIT)


def test_damage_of_the_binary_version_is_named(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path, LABELS)
    test, names = tmp_path / "test.bin", tmp_path / "fine_label_names.txt"
    whole = test.read_bytes()
    test.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"12295 bytes; needs a multiple of 3074"):
        open_folder(tmp_path, FRUIT)
    test.write_bytes(whole[:1] + b"\xff" + whole[2:])
    with pytest.raises(DataError, match=r"test\.bin: damaged, a label is 255"):
        open_folder(tmp_path, FRUIT)
    test.write_bytes(b"")
    with pytest.raises(DataError, match=r"0 bytes of 0 images"):
        open_folder(tmp_path, FRUIT)
    test.write_bytes(whole)
    names.write_text("\n".join(NAMES[:99]))
    with pytest.raises(DataError, match=r"99 class names; needs 100"):
        open_folder(tmp_path, FRUIT)
    test.unlink()
    with pytest.raises(DataError, match=r"test\.bin: missing"):
        open_folder(tmp_path, FRUIT)


def test_a_folder_for_each_class_is_read_by_its_names(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"apple": 2, "hot_dog": 1, "empty": 0})
    (tmp_path / "apple" / "notes.txt").write_text("no image")
    found = open_folder(tmp_path, FRUIT)
    assert sides(found) == [("apple", "forget"), ("apple", "forget"), ("hot dog", "retain")]
    assert found.pictures[0].open().size == (40, 30)


def test_an_image_of_a_class_folder_that_cannot_be_read_is_named(
    tmp_path: Path, plain_pillow: None
) -> None:
    write_class_folders(tmp_path, {"apple": 1, "dog": 1})
    (tmp_path / "dog" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dog/0\.jpg: no readable image"):
        open_folder(tmp_path, FRUIT).pictures[1].open()


def test_an_image_too_large_to_open_is_named(
    tmp_path: Path, plain_pillow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("apple", "pear"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    picture = open_folder(tmp_path, FRUIT).pictures[0]
    with pytest.raises(DataError, match=r"apple/1\.jpg: .*decompression bomb"):
        picture.open()


@pytest.mark.parametrize("counts", [{}, {"apple": 3}, {"apple": 0, "dog": 0}])
def test_a_folder_of_nothing_known_says_what_it_may_be(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    write_class_folders(tmp_path, counts)
    with pytest.raises(DataError, match=r"needs CIFAR-100, \*\.tar shards, or two folders"):
        open_folder(tmp_path, FRUIT)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_folder(tmp_path / "nowhere", FRUIT)


def test_a_concept_that_is_no_class_lists_the_near_ones(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"apple": 1, "couch": 1, "dog": 1})
    with pytest.raises(DataError, match=r"no class aple there; near: apple"):
        open_folder(tmp_path, (Concept("aple"),))
    with pytest.raises(DataError, match="no class elephant there"):
        open_folder(tmp_path, (Concept("apple"), Concept("elephant")))
    with pytest.raises(DataError, match="no class is left to retain"):
        open_folder(tmp_path, (Concept("apple"), Concept("couch"), Concept("dog")))
    assert open_folder(tmp_path, (Concept("sofa"),)).forgotten == {"couch"}


def test_a_concept_is_a_class_by_its_word_its_synonym_or_the_classes_own() -> None:
    classes = ("apple", "bicycle", "couch", "hot dog", "laptop", "pineapple")
    assert classes_of(Concept("apple"), classes) == {"apple"}
    assert classes_of(Concept("sofa"), classes) == {"couch"}
    assert classes_of(Concept("two-wheeler", ("bicycle",)), classes) == {"bicycle"}
    assert classes_of(Concept("dog", keep_senses=("hot dog",)), classes) == set()


def test_shards_give_captions_sides_and_classes(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples(["an apple on a plate", "a dog and a cat"]))
    write_shard(tmp_path / "1.tar", samples(["a quiet house", "a green  apple", "a dog"], 2))
    found = open_folder(tmp_path, FRUIT)
    assert [(p.captions, p.side, p.label) for p in found.pictures] == [
        (("an apple on a plate",), "forget", "apple"),
        (("a green apple",), "forget", "apple"),
        (("a dog and a cat",), "retain", None),  # two classes
        (("a quiet house",), "retain", None),  # none
        (("a dog",), "retain", "dog"),
    ]
    assert found.about["shards"] == ["0.tar", "1.tar"]
    assert found.pictures[0].open().size == (40, 30)


def test_what_a_shard_holds_of_no_use_is_left_out_and_counted(
    tmp_path: Path, plain_pillow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    files = samples(["an apple", "a dog", "a cat"])
    files["00001.jpg"] = b"no image"
    files |= {"7.jpg": jpeg(7), "8.txt": b"a bird", "9.jpg": jpeg(9), "9.txt": b"\xff\xfe"}
    write_shard(tmp_path / "0.tar", files)
    found = open_folder(tmp_path, FRUIT)
    assert [picture.captions for picture in found.pictures] == [("an apple",), ("a cat",)]
    assert "4 entries without a caption or a readable image are left out" in capsys.readouterr().err
    assert found.about["left_out"] == 4


def test_no_more_images_than_the_customary_thousand_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.evaluation.galleries import shards

    for module in (shards, gallery):
        monkeypatch.setattr(module, "MOST", 4)
    write_shard(tmp_path / "0.tar", samples(["an apple"] * 3 + ["a dog"] * 3))
    (tmp_path / "1.tar").write_bytes(b"never read: both sides have their half")
    assert [side for _, side in sides(open_folder(tmp_path, FRUIT))] == ["forget"] * 2 + [
        "retain"
    ] * 2


def test_a_concept_that_comes_late_in_the_shards_is_among_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.evaluation.galleries import shards

    for module in (shards, gallery):
        monkeypatch.setattr(module, "MOST", 4)
    write_shard(tmp_path / "0.tar", samples(["an apple"] * 5 + ["a dog"] * 3 + ["a pear"]))
    found = open_folder(tmp_path, (*FRUIT, Concept("pear")))
    captions = [picture.captions[0] for picture in found.pictures]
    assert captions == ["a pear", "an apple", "a dog", "a dog"]


def test_the_choice_is_half_to_forget_unless_a_side_has_fewer() -> None:
    many = list(range(2000))
    for forget, retain, kept in ((2000, 2000, 500), (2000, 100, 900), (30, 2000, 30), (3, 4, 3)):
        chosen = choose([f"f{i}" for i in many[:forget]], [f"r{i}" for i in many[:retain]])
        assert len(chosen) == min(1000, forget + retain)
        assert sum(name.startswith("f") for name in chosen) == kept
        assert chosen[0] == "f0" and "r0" in chosen


@pytest.mark.parametrize("form", ["garbage", "truncated", "packed"])
def test_a_broken_shard_is_named(tmp_path: Path, form: str) -> None:
    import gzip

    path = tmp_path / "3.tar"
    write_shard(path, samples(["an apple", "a dog"]))
    whole = path.read_bytes()
    broken = {"garbage": b"no tar at all" * 100, "truncated": whole[:700],
              "packed": gzip.compress(whole)[:-200]}  # fmt: skip
    path.write_bytes(broken[form])
    with pytest.raises(DataError, match=r"3\.tar: damaged shard \(.+\)") as caught:
        open_folder(tmp_path, FRUIT)
    assert "\n" not in str(caught.value)


def test_shards_without_the_concept_or_without_anything_else_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples(["a dog", "a cat"]))
    with pytest.raises(DataError, match="no caption with an image mentions apple"):
        open_folder(tmp_path, FRUIT)
    write_shard(tmp_path / "0.tar", samples(["an apple"]))
    with pytest.raises(DataError, match="every caption mentions a concept"):
        open_folder(tmp_path, FRUIT)


def test_shards_are_read_with_the_librarys_secure_mode_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webdataset
    import webdataset.utils

    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    write_shard(
        tmp_path / "0.tar", samples(["an apple", "a dog"]) | {"00002.pyd": b"cos\nsystem\n."}
    )
    open_folder(tmp_path, FRUIT)
    assert webdataset.utils.enforce_security
    with pytest.raises(ValueError, match="cannot open pipe"):
        webdataset.gopen("pipe:touch exploded")
    assert not Path("exploded").exists()


def test_without_the_library_shards_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("webdataset"):
            raise ModuleNotFoundError(name)
        return plain(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    write_shard(tmp_path / "0.tar", samples(["an apple", "a dog"]))
    with pytest.raises(SettingError, match=r"pip install -e '\.\[shards\]' in the clone"):
        open_folder(tmp_path, FRUIT)


def test_the_words_of_two_captions_make_no_phrase() -> None:
    found = of_captions(
        {}, [(("what is hot", "dog on a bed"), lambda: pytest.fail("opened"))], FRUIT
    )
    assert found.pictures[0].label is None  # a dog and a bed, no hot dog
