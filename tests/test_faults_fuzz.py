"""Random damage to everything that is read from outside: an EraseError of one line, or a result."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faulty import Faults
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from erase_sd.checked import load_tensors, save_tensors
from erase_sd.data.cifar100 import read_cifar100
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.formats import FORMATS
from erase_sd.data.images import open_image
from erase_sd.data.prompts import read_prompt_file
from erase_sd.data.sampled import read_shards
from erase_sd.errors import EraseError
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.models.unpickle import read_pickle
from erase_sd.reading import parse_record, read_json
from erase_sd.run.measurements import DetectionRecord, EvaluationRecord, ScoresRecord
from erase_sd.run.records import ErasureRecord, ImageRecord, RunRecord, TrainRecord

pytestmark = pytest.mark.faults
FUZZ = settings(
    max_examples=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)
VALID = {
    "results_20130124.token": b"1.jpg#0\tAn apple .\n1.jpg#1\tA dog .\n",
    "results_20130124.token.gz": gzip.compress(b"1.jpg#0\tAn apple .\n"),
    "results.csv": b"image_name| comment_number| comment\n1.jpg| 0| An apple .\n",
    "dataset_flickr30k.json": json.dumps(
        {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "An apple"}]}]}
    ).encode(),
    "flickr_annotations_30k.csv": b'raw,filename,split\n"[""An apple""]",1.jpg,train\n',
    "sentences": b"[/EN#1/people Two men] sit .\n",
}
RECORDS = (
    RunRecord, ImageRecord, TrainRecord, ErasureRecord, DetectionRecord, ScoresRecord, EvaluationRecord,
)  # fmt: skip


@st.composite
def damage(draw: st.DrawFn, valid: bytes) -> bytes:
    """The valid bytes with a few of them changed, cut out, doubled, or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 2, 8, 64, 1 << 20]))
        kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "end"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + min(length, 999)]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=9))
        else:
            del data[at:]
    return bytes(data)


def survives(read: Callable[[bytes], object], data: bytes) -> None:
    try:
        read(data)
    except EraseError as error:
        assert len(str(error).splitlines()) == 1, str(error)


def fuzz(
    faults: Faults, what: str, read: Callable[[bytes], object], *inputs: st.SearchStrategy[bytes]
) -> None:
    """Two faults: random bytes, and random damage to valid ones."""
    for kind, strategy in zip(("random", "damaged"), inputs, strict=False):
        with faults("fuzzing", f"{what}: {kind}"):
            FUZZ(given(strategy)(lambda data: survives(read, data)))()


@pytest.mark.parametrize("name", FORMATS)
def test_caption_formats(name: str, tmp_path: Path, faults: Faults) -> None:
    def read(data: bytes) -> None:
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        file = folder / name / "1.txt" if name == "sentences" else folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        read_flickr30k(folder)

    fuzz(faults, name, read, st.binary(max_size=200), damage(VALID[name]))
    with faults("fuzzing", f"{name}: any JSON"):
        FUZZ(given(JSON)(lambda value: survives(read, json.dumps(value).encode())))()


def test_prompt_files(tmp_path: Path, faults: Faults) -> None:
    def read(data: bytes) -> None:
        (tmp_path / "apple.txt").write_bytes(data)
        read_prompt_file(tmp_path / "apple.txt").pairs([Concept("apple")])

    fuzz(faults, "prompts", read, st.binary(max_size=200), damage(b"# note\nan apple\n\na dog\n"))


@pytest.mark.parametrize("kind", RECORDS)
def test_records(kind: type, faults: Faults) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    values = st.dictionaries(st.sampled_from(names), JSON) | JSON
    texts = values.map(lambda value: json.dumps(value).encode())
    fuzz(
        faults,
        kind.__name__,
        lambda data: parse_record(data, kind, "file"),
        st.binary(max_size=99),
        texts,
    )


def test_foreign_json(tmp_path: Path, faults: Faults) -> None:
    def read(data: bytes) -> None:
        (tmp_path / "config.json").write_bytes(data)
        read_json(tmp_path / "config.json")

    fuzz(faults, "configuration", read, st.binary(max_size=99), damage(b'{"a": [1, {"b": "c"}]}'))


def test_a_changed_bit_of_a_tensor_file_is_always_noticed(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}, {"k": "v"})
    valid = path.read_bytes()
    for place in range(0, 8 * len(valid), 8 * len(valid) // 40 + 1):
        with faults("changed bits", f"tensors: bit {place}"):
            data = bytearray(valid)
            data[place // 8] ^= 1 << place % 8
            path.write_bytes(data)
            try:
                tensors, about = load_tensors(path)
            except EraseError:
                continue
            # A bit of the header's white space carries nothing.
            assert about == {"k": "v"} and torch.equal(tensors["a"], torch.arange(6.0))


def test_tensor_files(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4)}, path, metadata={"a": "b"})

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_tensors(path)

    fuzz(faults, "safetensors", read, st.binary(max_size=99), damage(path.read_bytes()))
    huge = (2**62).to_bytes(8, "little") + b"{}"
    with faults("malicious files", "safetensors: a header of 4 EB"):
        survives(read, huge)


def test_images(tmp_path: Path, faults: Faults) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        Image.effect_noise((24, 24), 40).convert("RGB").save(file, kind)
        fuzz(
            faults, kind, lambda data: open_image(tmp_path / "x", data), st.binary(max_size=99),
            damage(file.getvalue()),
        )  # fmt: skip


def test_shards(tmp_path: Path, faults: Faults) -> None:
    archive, image = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    with tarfile.open(fileobj=archive, mode="w") as file:
        for number, caption in enumerate((b"an apple", b"a dog")):
            for suffix, data in (("jpg", image.getvalue()), ("txt", caption)):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))

    def read(data: bytes) -> None:
        (tmp_path / "0.tar").write_bytes(data)
        read_shards(tmp_path, [tmp_path / "0.tar"])

    fuzz(faults, "shards", read, st.binary(max_size=99), damage(archive.getvalue()))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", ["0.jpg", "../../0.jpg", "/etc/0.jpg"])
def test_links_devices_and_paths_out_of_a_shard_are_not_followed(
    tmp_path: Path, kind: bytes, name: str, faults: Faults
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as file:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        file.addfile(entry)
        caption = tarfile.TarInfo(name.replace("jpg", "txt"))
        caption.size = 8
        file.addfile(caption, io.BytesIO(b"an apple"))
    with faults("malicious files", f"shard: {name} of type {kind!r}"):
        with pytest.raises(EraseError):
            read_shards(tmp_path, [tmp_path / "0.tar"])
        assert {p.name for p in tmp_path.iterdir()} <= {"0.tar", "cache"}


def test_detector_pickles(tmp_path: Path, faults: Faults) -> None:
    path, archive = tmp_path / "x.pt", io.BytesIO()
    torch.save({"model": {"a": torch.ones(3)}}, archive)
    with zipfile.ZipFile(archive) as file:
        members = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_pickle(path)

    def read_member(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, data if name == pickled else content)
        read_pickle(path)

    fuzz(faults, "detector archives", read, st.binary(max_size=99), damage(archive.getvalue()))
    fuzz(faults, "detector pickles", read_member, st.binary(max_size=99), damage(members[pickled]))


def test_a_pickle_that_inflates_to_gigabytes_is_refused(tmp_path: Path, faults: Faults) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb/data.pkl", b"\0" * 300_000_000)
    with faults("malicious files", "detector: a zip bomb"), pytest.raises(EraseError):
        read_pickle(tmp_path / "bomb.pt")


def test_a_pickle_with_a_huge_memo_is_refused(tmp_path: Path, faults: Faults) -> None:
    memo = b"\x80\x02Nr" + (2**32 - 2).to_bytes(4, "little") + b"."
    with zipfile.ZipFile(tmp_path / "memo.pt", "w") as file:
        file.writestr("memo/data.pkl", memo)
    with faults("malicious files", "detector: a memo of 32 GB"), pytest.raises(EraseError):
        read_pickle(tmp_path / "memo.pt")
    for name in ("meta", "test"):
        (tmp_path / name).write_bytes(memo)
    with faults("malicious files", "CIFAR-100: a memo of 32 GB"), pytest.raises(EraseError):
        read_cifar100(tmp_path)


def test_cifar_pickles(tmp_path: Path, faults: Faults) -> None:
    import pickle

    meta = pickle.dumps({b"fine_label_names": [b"apple"] * 100})

    def read(data: bytes) -> None:
        (tmp_path / "meta").write_bytes(data)
        (tmp_path / "test").write_bytes(data)
        read_cifar100(tmp_path)

    fuzz(faults, "CIFAR-100", read, st.binary(max_size=99), damage(meta))


@pytest.mark.slow
def test_tokenizers(tiny: Models, tmp_path: Path, faults: Faults) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(tiny.clip_folder(0), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        valid = (folder / name).read_bytes()

        def read(data: bytes, name: str = name) -> None:
            (folder / name).write_bytes(data)
            load_clip(folder)

        fuzz(faults, name, read, st.binary(max_size=99), damage(valid))
        (folder / name).write_bytes(valid)
