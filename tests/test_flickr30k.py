"""A Flickr30K folder is read, or refused with file and line."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from erase_sd.errors import DataError
from erase_sd.pairs.concepts import Concept
from erase_sd.pairs.flickr30k import IMAGE_FOLDER, TOKEN_FILE, Captioned, Dataset, read
from erase_sd.pairs.split import split

REAL = Path(__file__).parents[2] / "shared/data/flickr30k" / f"{TOKEN_FILE}.gz"


def token_file(folder: Path, data: bytes) -> Path:
    (folder / TOKEN_FILE).write_bytes(data)
    return folder / TOKEN_FILE


def test_captions_are_gathered_by_image_in_the_files_order(tmp_path: Path) -> None:
    data = "b.jpg#0\tA dog .\na.jpg#0\tAn apple\r\nb.jpg#1\t Ein Hündchen \n".encode()
    token_file(tmp_path, data)
    found = read(tmp_path)
    assert found.items == (
        Captioned("b.jpg", ("A dog .", "Ein Hündchen")),
        Captioned("a.jpg", ("An apple",)),
    )
    assert found.folder == tmp_path
    assert found.digest == hashlib.sha256(data).hexdigest()


def test_the_digest_changes_with_the_captions(tmp_path: Path) -> None:
    token_file(tmp_path, b"a.jpg#0\tA dog\n")
    before = read(tmp_path).digest
    token_file(tmp_path, b"a.jpg#0\tA cat\n")
    assert read(tmp_path).digest != before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"b.jpg#0\tcaf\xe9", "not UTF-8"),
        (b"b.jpg#0 A dog", "needs `image.jpg#0<TAB>caption`"),
        (b"b.jpg\tA dog", "needs `image.jpg#0<TAB>caption`"),
        (b"b.jpg#one\tA dog", "needs `image.jpg#0<TAB>caption`"),
        (b"#0\tA dog", "needs `image.jpg#0<TAB>caption`"),
        (b"b.jpg#0\t", "needs `image.jpg#0<TAB>caption`"),
        (b"b.jpg#0\t  ", "needs `image.jpg#0<TAB>caption`"),
        (b"b.jpg#0\tA\0dog", "needs `image.jpg#0<TAB>caption`"),
        (b"b\0.jpg#0\tA dog", "needs `image.jpg#0<TAB>caption`"),
        (b"", "needs `image.jpg#0<TAB>caption`"),
        (b"../x.jpg#0\tA dog", "leaves the folder"),
        (b"/x.jpg#0\tA dog", "leaves the folder"),
        (b"below/x.jpg#0\tA dog", "leaves the folder"),
        (b"..#0\tA dog", "leaves the folder"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = token_file(tmp_path, b"a.jpg#0\tA dog\n" + line + b"\na.jpg#1\tA cat\n")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    path = token_file(tmp_path, b"")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == f"{path}: holds no caption"


def test_a_folder_without_the_file_is_refused_by_name(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as error:
            read(folder)
        assert str(folder) in str(error.value) and TOKEN_FILE in str(error.value)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    token_file(tmp_path, b"a.jpg#0\tA dog\nb.jpg#0\tA cat\n")
    images = tmp_path / IMAGE_FOLDER
    images.mkdir()
    (images / "a.jpg").touch()
    found = read(tmp_path)
    assert found.path_of(found.items[0]) == images / "a.jpg"
    with pytest.raises(DataError) as error:
        found.path_of(found.items[1])
    assert str(images / "b.jpg") in str(error.value)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    if not REAL.is_file():
        pytest.skip(f"the real captions are not here: {REAL}")
    folder = tmp_path_factory.mktemp("flickr30k")
    with gzip.open(REAL) as packed, (folder / TOKEN_FILE).open("wb") as file:
        shutil.copyfileobj(packed, file)
    yield read(folder)
    shutil.rmtree(folder)


def test_the_real_captions_are_read_five_an_image(real: Dataset) -> None:
    assert len(real.items) == 31_014
    assert {len(item.captions) for item in real.items} == {5}


# Images with a match of `grep -iP '\t.*(?<![\w-])WORDs?(?![\w-])'` in a caption.
@pytest.mark.parametrize(("word", "images"), [("apple", 59), ("elephant", 27), ("dog", 2259)])
def test_the_real_captions_split_by_image(real: Dataset, word: str, images: int) -> None:
    found = split(real.items, [Concept(word)], seed=0)
    forget = [i.image for part in found.forget.values() for i in part]
    retain = [i.image for part in found.retain.values() for i in part]
    assert len(forget) == images
    assert len(set(forget + retain)) == len(forget + retain) == 31_014
    assert all(part for side in (found.forget, found.retain) for part in side.values())
