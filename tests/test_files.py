"""Files are written whole or not at all, and damage is reported in one line."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from erase_sd.checked import hash_folder, load_tensors, save_tensors
from erase_sd.errors import RunError
from erase_sd.files import (
    cache_folder,
    hash_file,
    key_of,
    whole_file,
    whole_folder,
    write_bytes,
    write_csv,
    write_json,
    write_records,
    write_text,
)
from erase_sd.reading import read_json, read_record, read_records


@dataclass(frozen=True)
class Note:
    text: str
    value: float = 0.0
    sizes: tuple[int, ...] = ()


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_are_written_into_folders_that_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a/b/c", b"new")
    assert (tmp_path / "a/b/c").read_bytes() == b"new"
    assert names(tmp_path / "a/b") == ["c"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_bytes_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "kept"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize(("whole", "call"), [(whole_file, "open"), (whole_folder, "mkdir")])
def test_an_error_in_a_folder_that_cannot_be_written_names_what_was_to_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[Path], AbstractContextManager[Path]],
    call: str,
) -> None:
    def refuse(path: Any, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(PermissionError) as caught, whole(Path("report.html")):
        pass
    assert caught.value.filename == "report.html"


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_first_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "new", b"new")
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with whole_folder(tmp_path / "run") as folder:
            (folder / content).mkdir()
            (folder / content / "file").write_text(content)
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["new"]
    assert (tmp_path / "run/new/file").read_text() == "new"


def test_a_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run/file").read_text() == "new"


def test_a_folder_stays_as_it_was_when_the_body_raises(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "run/file").read_text() == "old"
    assert names(tmp_path) == ["run"]


def test_a_folder_stays_as_it_was_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "run/file").read_text() == "old"
    assert names(tmp_path) == ["run"]


def test_a_folder_stays_as_it_was_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("old")
    replace = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if (Path(source) / "file").read_text() == "new":
            full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("new")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run/file").read_text() == "old"


def test_a_folder_is_in_its_place_after_a_signal_between_the_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("old")
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(source) == tmp_path / "run":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("new")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run/file").read_text() == "old"


@pytest.mark.parametrize("value", [{}, {"a": [1, 0.1, None, True, "Äpfel \u2028 \n"]}])
def test_json_comes_back_as_it_was_written(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_kept(
    tmp_path: Path, number: float
) -> None:
    write_json(tmp_path / "x.json", {"loss": 1})
    write_records(tmp_path / "x.jsonl", [Note("kept")])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(tmp_path / "x.jsonl", [Note("new", number)])
    assert read_json(tmp_path / "x.json") == {"loss": 1}
    assert read_records(tmp_path / "x.jsonl", Note) == [Note("kept")]
    assert names(tmp_path) == ["x.json", "x.jsonl"]


@pytest.mark.parametrize(
    "data", [b"", b'{"a": 1', b"\xff\xfe", b"{'a': 1}", b"[]", b"null", b"1", b"[" * 99999]
)
def test_damaged_json_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(RunError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: damaged")
    assert len(str(error.value).splitlines()) == 1


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        read_json(tmp_path / "x.json")
    assert str(error.value) == f"{tmp_path / 'x.json'}: missing"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"[]", ""), (b"null", ""), (b"1", ""), (b"{}", "text: "), (b'{"text": 1}', "text: "),
        (b'{"text": "a", "value": "1"}', "value: "), (b'{"text": "a", "sizes": [1, "b"]}', "sizes.1: "),
        (b"", ""), (b"{", ""), (b"\xff", ""), (b'{"text": "\xff"}', ""),
    ],
)  # fmt: skip
def test_json_of_the_wrong_shape_is_one_line_that_names_the_field(
    tmp_path: Path, data: bytes, field: str
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(RunError) as error:
        read_record(path, Note, hint="score again")
    line = str(error.value)
    assert line.startswith(f"{path}: damaged or of another version ({field}")
    assert line.endswith("; score again") and len(line.splitlines()) == 1


def test_a_missing_record_is_reported_with_its_hint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x\.json: missing; score again$"):
        read_record(tmp_path / "x.json", Note, hint="score again")


def test_a_damaged_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text":\n')
    with pytest.raises(RunError) as error:
        read_records(path, Note)
    assert str(error.value).startswith(f"{path}:3: damaged")


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_records(tmp_path / "x.jsonl", Note) == []


@pytest.mark.parametrize("text", ["Äpfel", "two\nlines", "two\u2028lines", "two\x85lines"])
def test_records_come_back_as_they_were_written(tmp_path: Path, text: str) -> None:
    notes = [Note(text, 0.1, (1, 2)), Note("b")]
    write_records(tmp_path / "x.jsonl", notes)
    assert read_records(tmp_path / "x.jsonl", Note) == notes


def test_csv_has_a_header_and_empty_fields_for_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ("a", "b"), [{"a": 'say "x", y', "b": None}])
    assert (tmp_path / "x.csv").read_text() == 'a,b\n"say ""x"", y",\n'


def test_a_folders_hash_changes_with_names_and_with_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a/x.json", "1")
    first = hash_folder(tmp_path, "*.json")
    write_text(tmp_path / "a/x.json", "2")
    other_bytes = hash_folder(tmp_path, "*.json")
    (tmp_path / "a/x.json").rename(tmp_path / "a/y.json")
    other_name = hash_folder(tmp_path, "*.json")
    write_text(tmp_path / "y.json", "2")
    one_more = hash_folder(tmp_path, "*.json")
    assert len({first, other_bytes, other_name, one_more}) == 4


def test_a_folders_hash_is_of_the_matching_files_wherever_it_lies(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_text(tmp_path / folder / "x.json", "1")
    write_text(tmp_path / "two/notes.txt", "aside")
    assert hash_folder(tmp_path / "one", "*.json") == hash_folder(tmp_path / "two", "*.json")
    assert hash_folder(tmp_path / "two", "*") != hash_folder(tmp_path / "two", "*.json")


def test_a_key_does_not_depend_on_the_order_of_fields() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 2, "b": 1})


def test_a_files_hash_is_the_sha_256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # the example of FIPS 180
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "x") == known


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_safetensors_cannot_write_is_one_line_and_leaves_nothing(
    whole: Callable[[Path], AbstractContextManager[Path]],
) -> None:
    with (
        pytest.raises(RunError, match=r"^home/new: cannot be written \(No space left\)$"),
        whole(Path("home/new")) as partial,
    ):
        assert partial.exists()
        raise SafetensorError("No space left")
    assert list(Path("home").iterdir()) == []


def test_tensors_under_other_metadata_are_damaged(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"a": torch.arange(6.0)}
    save_tensors(path, tensors, {"key": "one"})
    loaded, about = load_tensors(path)
    assert about == {"key": "one"} and torch.equal(loaded["a"], tensors["a"])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata | {"key": "another"})
    with pytest.raises(RunError, match="its checksum does not match"):
        load_tensors(path)


def test_the_cache_in_the_home_folder_may_be_named_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("ERASE_SD_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("ERASE_SD_CACHE", "cache")
    assert cache_folder() == Path("cache")
