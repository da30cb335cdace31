"""Flickr30K is read in every format that people have it in, or refused with file and line."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import erase_sd
from erase_sd.data.flickr30k import IMAGE_FOLDER, PARTS, TOKEN_FILE, Captioned, Dataset, Part, read
from erase_sd.data.split import split
from erase_sd.errors import DataError
from erase_sd.models.presets import Models
from erase_sd.unlearning.settings import concepts_from

REAL = Path(__file__).parents[2] / "shared/data/flickr30k"
SPLIT: dict[Part, str] = {"train": "train", "validation": "val", "held-out": "test"}
ITEMS = (
    Captioned("11.jpg", ('A dog runs , "fast" | slow .', "Ein Hündchen"), "train"),
    Captioned("2.jpg", ("Two men sit .", "Men on a bench"), "validation"),
    Captioned("30.jpg", ("An apple", "A red apple ."), "held-out"),
)


def write_token(folder: Path, items: Sequence[Captioned]) -> Path:
    lines = [f"{i.image}#{n}\t{text}\n" for i in items for n, text in enumerate(i.captions)]
    (folder / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")
    return folder / TOKEN_FILE


def write_packed(folder: Path, items: Sequence[Captioned]) -> Path:
    plain = write_token(folder, items)
    packed = folder / f"{TOKEN_FILE}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return packed


def write_kaggle(folder: Path, items: Sequence[Captioned]) -> Path:
    lines = [f"{i.image}| {n}| {text}\n" for i in items for n, text in enumerate(i.captions)]
    header = "image_name| comment_number| comment\n"
    (folder / "results.csv").write_text(header + "".join(lines), encoding="utf-8")
    return folder / "results.csv"


def write_karpathy(folder: Path, items: Sequence[Captioned]) -> Path:
    images = [
        {
            "filename": item.image,
            "split": SPLIT[item.part or "train"],
            "sentences": [{"raw": text, "tokens": text.split()} for text in item.captions],
        }
        for item in items
    ]
    path = folder / "dataset_flickr30k.json"
    path.write_text(json.dumps({"dataset": "flickr30k", "images": images}), encoding="utf-8")
    return path


def write_hub(folder: Path, items: Sequence[Captioned]) -> Path:
    path = folder / "flickr_annotations_30k.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for n, item in enumerate(items):
            raw = json.dumps(item.captions)
            writer.writerow([raw, "[0, 1]", SPLIT[item.part or "train"], item.image, n])
    return path


def write_entities(folder: Path, items: Sequence[Captioned]) -> Path:
    (folder / "Sentences").mkdir()
    for item in items:
        first, *rest = item.captions
        word, _, more = first.partition(" ")
        marked = f"[/EN#12/people/other {word}] {more}"
        path = folder / "Sentences" / f"{Path(item.image).stem}.txt"
        path.write_text("\n".join([marked, *rest, "", ""]), encoding="utf-8")
    return folder / "Sentences"


Write = Callable[[Path, Sequence[Captioned]], Path]
WITH_SPLIT: list[Write] = [write_karpathy, write_hub]
WITHOUT_SPLIT: list[Write] = [write_token, write_packed, write_kaggle, write_entities]


def by_id(items: Sequence[Captioned]) -> list[Captioned]:
    return sorted(items, key=lambda item: item.image)


def unparted(items: Sequence[Captioned]) -> list[Captioned]:
    return [Captioned(item.image, item.captions) for item in items]


@pytest.mark.parametrize("write", WITH_SPLIT)
def test_a_format_with_a_split_is_read_with_it(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path, ITEMS)
    found = read(tmp_path)
    assert found.items == ITEMS
    assert (found.folder, found.source) == (tmp_path, source)


@pytest.mark.parametrize("write", WITHOUT_SPLIT)
def test_a_format_without_a_split_is_read_without(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path, ITEMS)
    found = read(tmp_path)
    assert by_id(found.items) == by_id(unparted(ITEMS))
    assert found.source == source


@pytest.mark.parametrize("write", WITHOUT_SPLIT)
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_three_lists_beside_the_captions_are_the_split(
    tmp_path: Path, write: Write, suffix: str
) -> None:
    write(tmp_path, ITEMS)
    for item in ITEMS:
        assert item.part
        line = item.image.removesuffix(".jpg") + suffix
        (tmp_path / f"{SPLIT[item.part]}.txt").write_text(f"999{suffix}\r\n{line}\r\n")
    assert by_id(read(tmp_path).items) == by_id(ITEMS)


def test_lists_that_are_not_all_there_or_of_something_else_are_no_split(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    (tmp_path / "train.txt").write_text("11\n")
    assert list(read(tmp_path).items) == unparted(ITEMS)
    for name in SPLIT.values():
        (tmp_path / f"{name}.txt").write_bytes(b"a sentence of 11 words\na caf\xe9\n")
    assert list(read(tmp_path).items) == unparted(ITEMS)


def test_an_image_in_none_of_the_lists_is_for_training(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    for name, line in (("train", ""), ("val", "2"), ("test", "30")):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    assert [item.part for item in read(tmp_path).items] == list(PARTS)


def test_an_image_in_two_lists_is_refused(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    for name, line in (("train", "11"), ("val", "2"), ("test", "11")):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == f"{tmp_path / 'test.txt'}: image 11.jpg is in two parts of the split"


def test_karpathys_restval_is_for_training(tmp_path: Path) -> None:
    path = write_karpathy(tmp_path, ITEMS)
    path.write_text(path.read_text().replace('"train"', '"restval"'))
    assert read(tmp_path).items == ITEMS


def test_the_one_broken_row_of_kaggles_file_is_read(tmp_path: Path) -> None:
    path = write_kaggle(tmp_path, ITEMS[:1])
    with path.open("a") as file:
        file.write("2199200615.jpg| 4   An apple .\n")
    assert read(tmp_path).items[1] == Captioned("2199200615.jpg", ("An apple .",))


def test_captions_are_gathered_by_image_in_the_files_order(tmp_path: Path) -> None:
    data = "b.jpg#0\tA dog .\na.jpg#0\tAn  apple\r\nb.jpg#1\t A \tcafe\u0301 \n"
    (tmp_path / TOKEN_FILE).write_bytes(data.encode())
    assert read(tmp_path).items == (
        Captioned("b.jpg", ("A dog .", "A caf\u00e9")),
        Captioned("a.jpg", ("An apple",)),
    )


def test_the_digest_is_of_the_captions_and_parts_whatever_the_format(tmp_path: Path) -> None:
    digests = []
    for n, (write, items) in enumerate(
        [
            (write_token, ITEMS), (write_kaggle, ITEMS), (write_hub, ITEMS),
            (write_karpathy, ITEMS), (write_token, ITEMS[:2]),
        ]
    ):  # fmt: skip
        (tmp_path / str(n)).mkdir()
        write(tmp_path / str(n), items)
        digests.append(read(tmp_path / str(n)).digest)
    token, kaggle, hub, karpathy, fewer = digests
    assert token == kaggle and hub == karpathy
    assert len({token, hub, fewer}) == 3 and all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)


def test_the_captions_that_lie_highest_are_read_and_those_with_a_split_first(
    tmp_path: Path,
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    write_karpathy(below, ITEMS)
    assert read(tmp_path).source.parent == below
    token = write_token(tmp_path, ITEMS)
    assert read(tmp_path).source == token
    assert read(tmp_path).format == "the token file"
    karpathy = write_karpathy(tmp_path, ITEMS)
    assert read(tmp_path).source == karpathy


def test_images_are_found_in_any_sub_folder(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-disk")
    folders = [tmp_path, tmp_path / IMAGE_FOLDER / "deep", elsewhere]
    for item, folder in zip(ITEMS, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / item.image).touch()
    (tmp_path / "link").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(tmp_path)  # a circle
    found = read(tmp_path)
    assert found.missing == ()
    assert [found.path_of(item).resolve() for item in found.items] == [
        (folder / item.image).resolve() for item, folder in zip(ITEMS, folders, strict=True)
    ]


def test_a_missing_image_is_counted_and_named(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    (tmp_path / "2.jpg").touch()
    (tmp_path / "11.jpg").mkdir()  # a folder is no image
    found = read(tmp_path)
    assert found.missing == ("11.jpg", "30.jpg")
    assert found.path_of(found.items[1]) == tmp_path / "2.jpg"
    with pytest.raises(DataError) as error:
        found.path_of(found.items[2])
    assert str(error.value) == f"--data {tmp_path}: image 30.jpg is missing"


LINE = "needs `image.jpg#0<TAB>caption`"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"b.jpg#0\tcaf\xe9", "not UTF-8"),
        (b"b.jpg#0 A dog", LINE),
        (b"b.jpg\tA dog", LINE),
        (b"b.jpg#one\tA dog", LINE),
        (b"#0\tA dog", LINE),
        (b"", LINE),
        (b"b.jpg#0\t", "needs a caption, got ''"),
        (b"b.jpg#0\t  ", "needs a caption"),
        (b"b.jpg#0\tA\0dog", "needs a caption"),
        (b"b\0.jpg#0\tA dog", "needs the name of an image's file"),
        (b"../x.jpg#0\tA dog", "needs the name of an image's file"),
        (b"/x.jpg#0\tA dog", "needs the name of an image's file"),
        (b"below/x.jpg#0\tA dog", "needs the name of an image's file"),
        (b"..#0\tA dog", "needs the name of an image's file"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / TOKEN_FILE
    path.write_bytes(b"a.jpg#0\tA dog\n" + line + b"\na.jpg#1\tA cat\n")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


KARPATHY = "dataset_flickr30k.json"
HUB = "flickr_annotations_30k.csv"
HEADER = "raw,sentids,split,filename,img_id\n"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (TOKEN_FILE, "", ": holds no caption"),
        ("results.csv", "", ":1: needs `image_name| comment_number| comment` first"),
        ("results.csv", "a.jpg,0,A dog\n", ":1: needs `image_name| comment_number| comment` first"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 4|\n",
         ":2: needs `image.jpg| 0| caption`"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| four| A dog\n",
         ":2: needs `image.jpg| 0| caption`"),
        (KARPATHY, "{", ": no JSON object with a list of `images`"),
        (KARPATHY, "[]", ": no JSON object with a list of `images`"),
        (KARPATHY, '{"images": [{"filename": "a.jpg", "sentences": [{"raw": "A dog"}]}]}',
         ": image 0: needs `filename`, `split` and `sentences`"),
        (KARPATHY, '{"images": [{"filename": 1, "split": "val", "sentences": [{"raw": "A"}]}]}',
         ": image 0: needs `filename`, `split` and `sentences`"),
        (KARPATHY, '{"images": [{"filename": "a.jpg", "split": "dev", "sentences": [{"raw": "A"}]}]}',
         ": image 0: split 'dev'; needs one of train, restval, val, test"),
        (HUB, "caption,filename\nA dog,a.jpg\n", ":2: needs columns raw"),
        (HUB, f'{HEADER}A dog,[],train,a.jpg,0\n', ":2: needs columns raw"),
        (HUB, f'{HEADER}"""A dog""",[],train,a.jpg,0\n', ":2: needs columns raw"),
        (HUB, f'{HEADER}"[""A dog""]",[],train\n', ":2: needs columns raw"),
        (HUB, f'{HEADER}"[""A dog""]",[],train,a.jpg,0\n"[""A dog""]",[],test,a.jpg,0\n',
         ":3: image a.jpg is in two parts of the split"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_it_needs(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}{reason}")


def test_damaged_markup_is_named_by_file_and_line(tmp_path: Path) -> None:
    sentences = write_entities(tmp_path, ITEMS)
    (sentences / "2.txt").write_text("Two men\n[/EN#1/people Two men sit\n")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{sentences / '2.txt'}:2: needs `[/EN#1/people Two men]")


@pytest.mark.parametrize("cut", [slice(None, -9), slice(2, None)])
def test_a_damaged_packed_file_is_refused(tmp_path: Path, cut: slice) -> None:
    path = write_packed(tmp_path, ITEMS)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(DataError, match=r"\.gz: damaged, cannot be unpacked"):
        read(tmp_path)


@pytest.mark.parametrize("write", [write_karpathy, write_hub])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, ITEMS)
    path.write_bytes(path.read_bytes().replace(b"An apple", b"A caf\xe9"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path)


def test_a_folder_without_captions_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / IMAGE_FOLDER).mkdir()
    (tmp_path / IMAGE_FOLDER / "1.jpg").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as error:
            read(folder)
        assert str(error.value).startswith(f"--data {folder}: no dataset_flickr30k.json, ")
        assert TOKEN_FILE in str(error.value)


@pytest.fixture
def pairs(tiny: Models) -> Path:
    """The tiny world's pairs, to be damaged."""
    assert tiny.data
    return Path(shutil.copytree(tiny.data, "pairs"))


def unlearn(tiny: Models, pairs: Path) -> Path:
    return erase_sd.unlearn(
        "apple", model=tiny.model, clip=tiny.clips, data=pairs, steps=2, retain_floor=0.0
    )


def test_unlearning_goes_on_without_the_missing_images_and_names_the_first(
    tiny: Models, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = split(read(pairs).items, concepts_from(["apple"]))
    lost = [sides.forget["train"][0].image, sides.retain["validation"][0].image]
    for name in lost:
        (pairs / IMAGE_FOLDER / name).unlink()
    first = read(pairs).missing[0]
    run = unlearn(tiny, pairs)
    assert f"2 of 150 images are missing, first {first}; their" in capsys.readouterr().err
    stage = json.loads((run / "run.json").read_text())["stages"]["unlearn"]
    assert stage["settings"]["missing_images"] == 2
    assert sum(stage["images"].values()) == 148


def test_unlearning_from_captions_without_any_image_is_refused_and_writes_nothing(
    tiny: Models, pairs: Path
) -> None:
    shutil.rmtree(pairs / IMAGE_FOLDER)
    with pytest.raises(DataError, match=r"150 of 150 images are missing, first 3000000000\.jpg;"):
        unlearn(tiny, pairs)
    assert not Path("runs").exists()


@pytest.fixture(scope="module")
def real() -> Dataset:
    if not REAL.is_dir():
        pytest.skip(f"the real captions are not here: {REAL}")
    return read(REAL)


def test_the_real_captions_are_read_five_an_image(real: Dataset) -> None:
    assert len(real.items) == 31_014
    assert {len(item.captions) for item in real.items} == {5}
    parts = [item.part for item in real.items]
    assert [parts.count(part) for part in PARTS] == [29_000, 1_014, 1_000]
    assert len(real.missing) + len(list((REAL / IMAGE_FOLDER).iterdir())) == 31_014


def says(caption: str, words: set[str], other: set[tuple[str, ...]]) -> bool:
    """Whether one of `words` stands in `caption`, and is not part of a pair of words in `other`."""
    if not any(word in caption.lower() for word in words):
        return False
    found = ["", *(word.strip("-") for word in re.findall(r"[\w-]+", caption.lower())), ""]
    return any(
        word in words and not {(found[i - 1], word), (word, found[i + 1])} & other
        for i, word in enumerate(found)
    )


@pytest.mark.parametrize(
    ("concept", "words", "other", "images"),
    [
        ("apple", "apple apples", "", 59),
        ("elephant", "elephant elephants", "", 27),
        ("bicycle", "bicycle bicycles", "", 937),
        ("chair", "chair chairs", "chair lift, chair lifts", 782),
        ("dog", "dog dogs", "corn dogs, chili dog", 2_258),
        ("hot dog", "hotdog hotdogs", "", 43),
        ("bear", "bear bears", "teddy bear, teddy bears, care bear, care bears", 35),
        ("mouse", "mouse mice", "mickey mouse, minnie mouse", 16),
        ("knife", "knife knives", "", 62),
        ("person", "person people persons", "", 10_204),
    ],
)
def test_real_captions_mention_a_concept_where_a_person_says_so(
    real: Dataset, concept: str, words: str, other: str, images: int
) -> None:
    (wanted,) = concepts_from([concept])
    pairs = {tuple(pair.split()) for pair in other.split(", ")}
    wrong = [
        (item.image, caption)
        for item in real.items
        for caption in item.captions
        if wanted.in_text(caption) != says(caption, set(words.split()), pairs)
    ]
    assert not wrong
    found = split(real.items, [wanted])
    forget = [item.image for part in found.forget.values() for item in part]
    retain = [item.image for part in found.retain.values() for item in part]
    assert len(forget) == images
    assert len(set(forget + retain)) == len(forget + retain) == 31_014
    assert all(part for side in (found.forget, found.retain) for part in side.values())
