"""Entries of the cache, and files that are read, in which something else stands than was written."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty import Faults
from labelled_data import samples, write_shard
from PIL import Image

from erase_sd.checked import load_bytes, load_tensors, save_bytes, save_tensors
from erase_sd.data import parser, parses, shard_index, syntax
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.sampled import read_shards
from erase_sd.data.shards import Sample
from erase_sd.data.tree import Parsed
from erase_sd.errors import EraseError, RunError
from erase_sd.files import hash_file, whole_folder
from erase_sd.generation.cache import cached_batch, image_cache, store_batch
from erase_sd.mini.captions import training_captions
from erase_sd.mini.scenes import sample
from erase_sd.models.features import image_features
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning.checkpoint import Checkpoint

pytestmark = pytest.mark.faults
posix = pytest.mark.skipif(os.name == "nt", reason="needs pipes and links of POSIX")
CAPTIONS = list(dict.fromkeys(t for n in range(90) for t in training_captions(sample(n))))


@contextlib.contextmanager
def at_once(pipe: Path) -> Iterator[None]:
    """Fails if the block waits for somebody to write into a pipe, instead of waiting for ever."""
    waited = threading.Event()

    def release() -> None:
        waited.set()
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    timer = threading.Timer(20, release)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    assert not waited.is_set()


def put(path: Path, kind: str) -> None:
    """A pipe, a folder or a link that leads nowhere in the place of a file."""
    if path.is_file():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("gone")


@posix
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_tensor_files_that_are_no_files_are_one_line(kind: str, faults: Faults) -> None:
    path = Path("x.safetensors")
    put(path, kind)
    with faults("not regular files", f"tensors: {kind}"), at_once(path):
        with pytest.raises(RunError, match="not a regular file"):
            load_tensors(path)
    with faults("not regular files", f"checkpoint: {kind}"), at_once(path):
        with pytest.raises(RunError, match="not a regular file"):
            Checkpoint(path, {}).load()


@posix
def test_captions_and_shards_that_are_pipes_are_not_waited_for(faults: Faults) -> None:
    for name in ("results.csv", "results_20130124.token", "sentences/1.txt", "0.tar"):
        path = Path(name.replace("/", "-"), name)
        put(path, "pipe")
        with faults("not regular files", f"{name}: pipe"), at_once(path):
            with pytest.raises(EraseError):
                read_shards(path.parent, [path]) if name == "0.tar" else read_flickr30k(path.parent)


def test_a_file_of_the_cache_is_valid_under_its_own_name_only(faults: Faults) -> None:
    a, b = Path("cache/a"), Path("cache/b")
    save_bytes(a, b"one")
    save_bytes(b, b"two")
    assert load_bytes(a) == b"one"
    valid = a.read_bytes()
    for place in range(len(valid)):
        with faults("changed bits", f"bytes of the cache: byte {place}"):
            a.write_bytes(valid[:place] + bytes([valid[place] ^ 1]) + valid[place + 1 :])
            assert load_bytes(a) is None
    with faults("damaged caches", "bytes: another entry"):
        shutil.copy(b, a)
        assert load_bytes(a) is None
    for kind in ("folder", "pipe", "link") if os.name != "nt" else ("folder",):
        with faults("damaged caches", f"bytes: a {kind}"):
            b.unlink() if b.is_file() or b.is_symlink() else None
            shutil.rmtree(b, ignore_errors=True)
            put(b, kind)
            assert load_bytes(b) is None
            b.unlink() if not b.is_dir() else b.rmdir()


@pytest.fixture
def parsed_anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reach the parser; nothing is held from earlier tests."""
    texts: list[str] = []

    def counting(some: list[str]) -> list[Parsed]:
        texts.extend(some)
        return parser.parse_texts(some)

    monkeypatch.setattr(parses, "_held", {})
    monkeypatch.setattr(parses, "parse_texts", counting)
    return texts


@posix
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "another", "empty", "text"])
def test_syntax_trees_are_parsed_again_whatever_stands_in_the_cache(
    kind: str, parsed_anew: list[str], faults: Faults
) -> None:
    own, other = CAPTIONS[: parses.MIN_STORED], CAPTIONS[-parses.MIN_STORED :]
    expected = [[t.tag for t in tree.tokens] for tree in syntax.parse(own)]
    [file] = Path("cache/parses").glob("*.json")
    if kind == "another":
        parses._held.clear()
        list(syntax.parse(other))
        [stored] = [p for p in file.parent.glob("*.json") if p != file]
        shutil.copy(stored, file)
    elif kind in ("empty", "text"):
        file.write_text("" if kind == "empty" else "x" * 200)
    else:
        put(file, kind)
    parses._held.clear()
    parsed_anew.clear()
    with faults("damaged caches", f"syntax trees: {kind}"), at_once(file):
        assert [[t.tag for t in tree.tokens] for tree in syntax.parse(own)] == expected
        assert len(parsed_anew) == len(own)


@posix
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "another", "unkeyed"])
def test_features_are_computed_again_whatever_stands_in_the_cache(
    tiny: Models, kind: str, faults: Faults
) -> None:
    clip, read = load_clip(tiny.clip_folder(0)), read_flickr30k(tiny.pairs())
    names = [item.image for item in read.items[:3]]
    expected = image_features(clip, read, names)
    [path] = Path("cache").rglob("*.safetensors")
    wrong = {name: -tensor for name, tensor in load_tensors(path)[0].items()}
    if kind in ("another", "unkeyed"):  # features of another CLIP, with a checksum that is right
        save_tensors(path, wrong, {"key": "0" * 16} if kind == "another" else {})
    else:
        put(path, kind)
    with faults("damaged caches", f"image features: {kind}"), at_once(path):
        again = image_features(clip, read, names)
        assert all(torch.allclose(again[n], expected[n], atol=1e-6) for n in names)


@posix
def test_batches_of_images_are_those_of_their_key(faults: Faults) -> None:
    root, batches = image_cache(), {"a": [b"1", b"2"], "b": [b"3", b"4"]}
    for key, batch in batches.items():
        store_batch(root, key, batch)
    with faults("damaged caches", "images: another batch"):
        shutil.rmtree(root / "a")
        shutil.copytree(root / "b", root / "a")
        assert cached_batch(root, "a", 2) == []
    with faults("damaged caches", "images: made again"):
        store_batch(root, "a", batches["a"])
        assert cached_batch(root, "a", 2) == batches["a"]
    [first, _] = sorted((root / "b").glob("*.png"))
    put(first, "pipe")
    with faults("not regular files", "cached images: pipe"), at_once(first):
        assert cached_batch(root, "b", 2) == []
    (root / "c").write_text("a file in the place of a folder")
    with faults("damaged caches", "images: a file in the place of a folder"):
        assert cached_batch(root, "c", 2) == []
        store_batch(root, "c", batches["a"])
        assert cached_batch(root, "c", 2) == batches["a"]


@posix
def test_a_file_that_changes_in_place_has_another_hash_even_if_its_time_is_set_back(
    faults: Faults,
) -> None:
    path = Path("x")
    path.write_bytes(b"before")
    state, before = path.stat(), hash_file(path)
    with path.open("r+b") as file:
        file.write(b"after!")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with faults("silent wrong results", "a file whose time was set back"):
        assert path.stat().st_ino == state.st_ino and path.stat().st_size == state.st_size
        assert hash_file(path) != before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_folder_is_flushed_with_all_folders_in_it(
    monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    flushed: list[str] = []
    sync = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_folder(Path("out")) as partial:
        (partial / "inner" / "deep").mkdir(parents=True)
        (partial / "inner" / "deep" / "file").write_text("x")
    with faults("partial files", "a power cut after a folder was renamed"):
        assert {"file", "deep", "inner", partial.name} <= set(flushed)


@posix
@pytest.mark.parametrize("kind", ["another", "shorter", "other words", "pipe", "folder", "link"])
def test_a_shard_is_indexed_again_whatever_stands_in_the_cache(kind: str, faults: Faults) -> None:
    captions = ["an apple", "a dog", "a cat"]
    write_shard(Path("data/0.tar"), samples(captions))
    write_shard(Path("data/1.tar"), samples(["a bus"], 9))
    shards = [Path("data/0.tar"), Path("data/1.tar")]
    expected = read_shards(Path("data"), shards)
    index, other = sorted(Path("cache/shards").glob("*.jsonl"), key=lambda p: -p.stat().st_size)
    lines = index.read_text().splitlines()
    if kind == "another":
        shutil.copy(other, index)
    elif kind == "shorter":
        index.write_text(f"{lines[0]}\n")
    elif kind == "other words":
        index.write_text(index.read_text().replace("apple", "maple"))
    else:
        put(index, kind)
    with faults("damaged caches", f"index of a shard: {kind}"), at_once(index):
        assert read_shards(Path("data"), shards) == expected


def test_a_shard_that_is_replaced_while_it_is_read_is_read_again(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, samples_of = Path("data/0.tar"), shard_index.samples_of
    write_shard(shard, samples(["an apple", "a dog"]))

    def replaced(path: Path) -> Iterator[Sample]:
        yield from samples_of(path)
        write_shard(Path("new.tar"), samples(["a bus"]))
        Path("new.tar").replace(shard)

    monkeypatch.setattr(shard_index, "samples_of", replaced)
    read_shards(Path("data"), [shard])
    monkeypatch.setattr(shard_index, "samples_of", samples_of)
    with faults("silent wrong results", "index of a shard that was replaced while it was read"):
        assert [item.captions for item in read_shards(Path("data"), [shard]).items] == [("a bus",)]


def test_an_entry_that_claims_terabytes_is_left_out(
    faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    good = {"1.jpg": image.getvalue(), "1.txt": b"an apple"}
    for what, entry in {
        "sparse": ("0.jpg", "GNU.sparse.realsize"), "a sparse caption": ("0.txt", "GNU.sparse.realsize"),
    }.items():  # fmt: skip
        name, field = entry
        with tarfile.open("0.tar", "w", format=tarfile.PAX_FORMAT) as file:
            bomb = tarfile.TarInfo(name)
            body = b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512
            bomb.size = len(body)
            bomb.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", field: str(2**43)}
            file.addfile(bomb, io.BytesIO(body))
            for own, data in good.items():
                member = tarfile.TarInfo(own)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        with faults("malicious files", f"shard: {what} entry of 8 TB"):
            assert [item.image for item in read_shards(Path(), [Path("0.tar")]).items] == [
                "0.tar/1.jpg"
            ]
            assert "left out" in caplog.text
