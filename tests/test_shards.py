"""Shards are read once and sampled: memory does not grow with them, and no caption of a concept is missed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from faulty import side_by_side
from labelled_data import samples, write_shard

from erase_sd.bench.captions import (
    SHARD,
    Cost,
    cost_lines,
    cost_of_shards,
    curve,
    three_thing_pairs,
)
from erase_sd.data import sampled, shard_index
from erase_sd.data import shards as shards_module
from erase_sd.data.concept import Concept
from erase_sd.data.dataset import Dataset, digest_of
from erase_sd.data.readers import read_dataset
from erase_sd.data.shards import samples_of, shards_in, write_shards
from erase_sd.data.split import hash_order
from erase_sd.files import cache_folder

CAPTIONS = ["a dog", "an apple", "a cat", "a house", "two apples", "a boat", "a tree", "a bus"]
APPLE = (Concept("apple"),)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write_shard(folder / "0.tar", samples(CAPTIONS[:5]))
    write_shard(folder / "1.tar", samples(CAPTIONS[5:], 5))
    return folder


def indexes() -> list[Path]:
    return sorted(cache_folder().glob("shards/*.jsonl"))


def test_a_sample_keeps_every_mention_and_the_digests_of_all_images(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_dataset(shards, APPLE)
    assert [item.captions[0] for item in whole.items] == CAPTIONS
    assert whole.digest == digest_of(whole.items)
    assert whole.images_digest == Dataset(*[getattr(whole, n) for n in (
        "folder", "source", "format", "digest", "items", "files",
    )]).images_digest  # fmt: skip
    monkeypatch.setattr(sampled, "MOST_IMAGES", 2)
    part = read_dataset(shards, APPLE)
    assert {"an apple", "two apples"} < {item.captions[0] for item in part.items}
    assert len(part.items) == len(part.files) == 4
    assert (part.digest, part.images_digest) == (whole.digest, whole.images_digest)
    others = [item for item in whole.items if "apple" not in item.captions[0]]
    assert set(hash_order(others)[:2]) < {*part.items}


def test_a_shard_is_read_once_and_again_after_a_change_or_if_its_index_is_damaged(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    samples_of = shard_index.samples_of
    monkeypatch.setattr(
        shard_index, "samples_of", lambda shard: read.append(shard.name) or samples_of(shard)
    )
    first = read_dataset(shards)
    assert read_dataset(shards) == first and read == ["0.tar", "1.tar"]
    write_shard(shards / "1.tar", samples(["changed", "captions"], 5))
    assert len(read_dataset(shards).items) == 7 and read[2:] == ["1.tar"]
    indexes()[0].write_text("{")
    assert len(read_dataset(shards).items) == 7 and len(read) <= 4


def test_shards_without_an_index_are_indexed_and_no_claim_is_left(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = shards_in(shards)
    shard_index.indexed(paths[0])
    assert len(indexes()) == 1
    shard_index.index_shards(paths)
    assert len(indexes()) == 2 and not (cache_folder() / "shards" / ".claims").exists()
    monkeypatch.setattr(shard_index, "Claims", None)
    shard_index.index_shards(paths)  # claims nothing


def test_a_linked_shard_has_its_own_name_whichever_folder_was_read_first(
    shards: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "7.tar").symlink_to(shards / "1.tar")
    images = [item.image for item in read_dataset(shards).items]
    assert [item.image for item in read_dataset(linked).items] == [
        name.replace("1.tar", "7.tar") for name in images if name.startswith("1.tar")
    ]
    assert [item.image for item in read_dataset(shards).items] == images


def test_a_name_that_comes_again_is_left_out_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = tmp_path / "again.tar"
    write_shard(again, samples(["a cat"]))
    write_shard(tmp_path / "0.tar", samples(["an apple", "a dog"]))
    with tarfile.open(again) as source, tarfile.open(tmp_path / "0.tar", "a") as tar:
        for member in source:
            tar.addfile(member, source.extractfile(member))
    again.unlink()
    assert [item.captions for item in read_dataset(tmp_path).items] == [("an apple",), ("a dog",)]
    assert "1 samples without a caption or an image, or with the name of an earlier" in caplog.text


def test_a_sample_is_all_entries_with_one_key_and_shards_are_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    large, long = b"x" * 100_000, " ".join(["word"] * 13_000)
    files = {
        "a/1.JPG": large, "a/1.txt": long.encode(), "a/1.mask.png": b"x", "a/1.json": b"{}",
        "b/1.jpeg": b"2", "b/1.TXT": b" a\0dog\n  runs ", "3.png": b"3", "3.webp": b"4",
        "4.txt": b"a cat", "5.txt": b"\xff",
    }  # fmt: skip
    for number in range(9, -1, -1):
        write_shard(tmp_path / f"{number}.tar", files if number == 3 else {})
    (tmp_path / "._3.tar").touch()  # as macOS leaves it
    shards = shards_in(tmp_path)
    assert [shard.name for shard in shards] == [f"{number}.tar" for number in range(10)]
    found = list(samples_of(shards[3]))
    assert [(sample.key, sample.caption) for sample in found] == [
        ("a/1", long), ("b/1", "a dog runs"), ("3", ""), ("4", "a cat"), ("5", ""),
    ]  # fmt: skip
    images = [sample.image for sample in found[:3]]
    assert [image.name for image in images if image] == [
        "3.tar/a/1.jpg",
        "3.tar/b/1.jpeg",
        "3.tar/3.webp",
    ]
    assert [image.read() for image in images if image] == [large, b"2", b"4"]
    assert [sample.image for sample in found[3:]] == [None, None]


def test_entries_that_are_too_large_or_sparse_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MAX_CAPTION", 5)
    monkeypatch.setattr(shards_module, "MAX_IMAGE", 7)
    path = tmp_path / "0.tar"
    write_shard(
        path, {"0.jpg": b"8 bytes!", "0.txt": b"6 byte", "1.jpg": b"7 bytes", "1.txt": b"5 byt"}
    )
    assert [(s.caption, bool(s.image)) for s in samples_of(path)] == [("", False), ("5 byt", True)]
    body = b"1\n0\n4\n".ljust(tarfile.BLOCKSIZE, b"\0") + b"1234"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.jpg")
        info.size = len(body)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": "4",
        }
        tar.addfile(info, io.BytesIO(body))
    assert [sample.image for sample in samples_of(path)] == [None]


def test_names_of_entries_need_not_be_utf8(tmp_path: Path) -> None:
    image, caption = samples(["an apple"]).values()
    names = {"d\udcff/1.jpg": image, "d\udcff/1.txt": caption}  # Latin-1, as tarfile escapes it
    write_shard(tmp_path / "0.tar", names | samples(["a dog"], 2))
    first = read_dataset(tmp_path, APPLE)
    assert [item.image for item in first.items] == [r"0.tar/d\xff/1.jpg", "0.tar/00002.jpg"]
    assert read_dataset(tmp_path, APPLE) == first and len(indexes()) == 1


def test_shards_are_read_without_a_cache(
    shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ERASE_SD_CACHE", str(tmp_path / "file"))
    assert len(read_dataset(shards).items) == len(CAPTIONS)


@pytest.mark.forks
def test_processes_index_shards_together(shards: Path) -> None:
    torch.set_num_threads(1)
    assert side_by_side(3, lambda _: read_dataset(shards, APPLE)) == [0] * 3
    assert len(indexes()) == 2
    assert [len(path.read_text().splitlines()) for path in indexes()] in ([5, 3], [3, 5])


def test_the_bench_measures_made_up_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, three_thing_pairs(120), SHARD)
    cost = cost_of_shards(tmp_path, 120)
    assert cost.captions == cost.kept == 120 and cost.peak_memory_mb > 0
    assert cost_lines([cost]).startswith("| captions | kept |")
    assert (
        curve([cost, Cost(**json.loads(json.dumps(vars(cost))) | {"captions": 240})])[:4]
        == b"\x89PNG"
    )
