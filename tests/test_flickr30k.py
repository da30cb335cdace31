"""Flickr30K is read in each of its published formats, or refused with file and line."""

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
from erase_sd.data.dataset import CaptionedImage, Dataset
from erase_sd.data.flickr30k import IMAGE_FOLDER, read_flickr30k
from erase_sd.data.formats import TOKEN_FILE
from erase_sd.data.pair import CONCEPT_SETS, SPLITS, Split
from erase_sd.data.split import split_by_concept
from erase_sd.errors import DataError
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.settings import parse_concepts

REAL = Path(__file__).parents[2] / "shared/data/flickr30k"
SPLIT_NAMES: dict[Split, str] = {"train": "train", "validation": "val", "held-out": "test"}
ITEMS = (
    CaptionedImage("11.jpg", ('A dog runs , "fast" | slow .', "Ein Hündchen"), "train"),
    CaptionedImage("2.jpg", ("Two men sit .", "Men on a bench"), "validation"),
    CaptionedImage("30.jpg", ("An apple", "A red apple ."), "held-out"),
)


def write_token(folder: Path, items: Sequence[CaptionedImage]) -> Path:
    lines = [f"{i.image}#{n}\t{text}\n" for i in items for n, text in enumerate(i.captions)]
    (folder / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")
    return folder / TOKEN_FILE


def write_gzipped(folder: Path, items: Sequence[CaptionedImage]) -> Path:
    plain = write_token(folder, items)
    packed = folder / f"{TOKEN_FILE}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return packed


def write_kaggle(folder: Path, items: Sequence[CaptionedImage]) -> Path:
    lines = [f"{i.image}| {n}| {text}\n" for i in items for n, text in enumerate(i.captions)]
    header = "image_name| comment_number| comment\n"
    (folder / "results.csv").write_text(header + "".join(lines), encoding="utf-8")
    return folder / "results.csv"


def write_karpathy(folder: Path, items: Sequence[CaptionedImage]) -> Path:
    images = [
        {
            "filename": item.image,
            "split": SPLIT_NAMES[item.split or "train"],
            "sentences": [{"raw": text, "tokens": text.split()} for text in item.captions],
        }
        for item in items
    ]
    path = folder / "dataset_flickr30k.json"
    path.write_text(json.dumps({"dataset": "flickr30k", "images": images}), encoding="utf-8")
    return path


def write_hub(folder: Path, items: Sequence[CaptionedImage]) -> Path:
    path = folder / "flickr_annotations_30k.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for n, item in enumerate(items):
            raw = json.dumps(item.captions)
            writer.writerow([raw, "[0, 1]", SPLIT_NAMES[item.split or "train"], item.image, n])
    return path


def write_entities(folder: Path, items: Sequence[CaptionedImage]) -> Path:
    (folder / "Sentences").mkdir()
    for item in items:
        first, *rest = item.captions
        word, _, more = first.partition(" ")
        marked = f"[/EN#12/people/other {word}] {more}"
        path = folder / "Sentences" / f"{Path(item.image).stem}.txt"
        path.write_text("\n".join([marked, *rest, "", ""]), encoding="utf-8")
    return folder / "Sentences"


Write = Callable[[Path, Sequence[CaptionedImage]], Path]
WITH_SPLIT: list[Write] = [write_karpathy, write_hub]
WITHOUT_SPLIT: list[Write] = [write_token, write_gzipped, write_kaggle, write_entities]


def by_id(items: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    return sorted(items, key=lambda item: item.image)


def without_split(items: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    return [CaptionedImage(item.image, item.captions) for item in items]


@pytest.mark.parametrize("write", WITH_SPLIT)
def test_a_format_with_a_split_is_read_with_it(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path, ITEMS)
    data = read_flickr30k(tmp_path)
    assert data.items == ITEMS
    assert (data.folder, data.source) == (tmp_path, source)


@pytest.mark.parametrize("write", WITHOUT_SPLIT)
def test_a_format_without_a_split_is_read_without_one(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path, ITEMS)
    data = read_flickr30k(tmp_path)
    assert by_id(data.items) == by_id(without_split(ITEMS))
    assert data.source == source


@pytest.mark.parametrize("write", WITHOUT_SPLIT)
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_three_lists_beside_the_captions_give_the_split(
    tmp_path: Path, write: Write, suffix: str
) -> None:
    write(tmp_path, ITEMS)
    for item in ITEMS:
        assert item.split
        line = item.image.removesuffix(".jpg") + suffix
        (tmp_path / f"{SPLIT_NAMES[item.split]}.txt").write_text(f"999{suffix}\r\n{line}\r\n")
    assert by_id(read_flickr30k(tmp_path).items) == by_id(ITEMS)


def test_incomplete_or_unrelated_lists_give_no_split(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    (tmp_path / "train.txt").write_text("11\n")
    assert list(read_flickr30k(tmp_path).items) == without_split(ITEMS)
    for name in SPLIT_NAMES.values():
        (tmp_path / f"{name}.txt").write_bytes(b"a sentence of 11 words\na caf\xe9\n")
    assert list(read_flickr30k(tmp_path).items) == without_split(ITEMS)


def test_an_image_in_no_list_is_for_training(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    for name, line in (("train", ""), ("val", "2"), ("test", "30")):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    assert [item.split for item in read_flickr30k(tmp_path).items] == list(SPLITS)


def test_an_image_in_two_lists_is_refused(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    for name, line in (("train", "11"), ("val", "2"), ("test", "11")):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    with pytest.raises(DataError) as error:
        read_flickr30k(tmp_path)
    assert str(error.value) == f"{tmp_path / 'test.txt'}: image 11.jpg is in two splits"


def test_karpathys_restval_is_for_training(tmp_path: Path) -> None:
    path = write_karpathy(tmp_path, ITEMS)
    path.write_text(path.read_text().replace('"train"', '"restval"'))
    assert read_flickr30k(tmp_path).items == ITEMS


def test_the_broken_row_of_kaggles_file_is_read(tmp_path: Path) -> None:
    path = write_kaggle(tmp_path, ITEMS[:1])
    with path.open("a") as file:
        file.write("2199200615.jpg| 4   An apple .\n")
    assert read_flickr30k(tmp_path).items[1] == CaptionedImage("2199200615.jpg", ("An apple .",))


def test_captions_are_grouped_by_image_in_file_order(tmp_path: Path) -> None:
    data = "b.jpg#0\tA dog .\na.jpg#0\tAn  apple\r\nb.jpg#1\t A \tcafe\u0301 \n"
    (tmp_path / TOKEN_FILE).write_bytes(data.encode())
    assert read_flickr30k(tmp_path).items == (
        CaptionedImage("b.jpg", ("A dog .", "A caf\u00e9")),
        CaptionedImage("a.jpg", ("An apple",)),
    )


def test_the_digest_depends_on_captions_and_splits_but_not_on_the_format(tmp_path: Path) -> None:
    digests = []
    for n, (write, items) in enumerate(
        [
            (write_token, ITEMS), (write_kaggle, ITEMS), (write_hub, ITEMS),
            (write_karpathy, ITEMS), (write_token, ITEMS[:2]),
        ]
    ):  # fmt: skip
        (tmp_path / str(n)).mkdir()
        write(tmp_path / str(n), items)
        digests.append(read_flickr30k(tmp_path / str(n)).digest)
    token, kaggle, hub, karpathy, fewer = digests
    assert token == kaggle and hub == karpathy
    assert len({token, hub, fewer}) == 3 and all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)


def test_captions_nearest_to_the_top_are_read_and_formats_with_a_split_first(
    tmp_path: Path,
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    write_karpathy(below, ITEMS)
    assert read_flickr30k(tmp_path).source.parent == below
    token = write_token(tmp_path, ITEMS)
    assert read_flickr30k(tmp_path).source == token
    assert read_flickr30k(tmp_path).format == "the token file"
    karpathy = write_karpathy(tmp_path, ITEMS)
    assert read_flickr30k(tmp_path).source == karpathy


def test_images_are_found_in_any_subfolder(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-disk")
    folders = [tmp_path, tmp_path / IMAGE_FOLDER / "deep", elsewhere]
    for item, folder in zip(ITEMS, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / item.image).touch()
    (tmp_path / "link").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(tmp_path)  # a circle
    data = read_flickr30k(tmp_path)
    assert data.missing == ()
    assert [data.path_of(item.image).resolve() for item in data.items] == [
        (folder / item.image).resolve() for item, folder in zip(ITEMS, folders, strict=True)
    ]


def test_missing_images_are_listed_by_name(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    (tmp_path / "2.jpg").touch()
    (tmp_path / "11.jpg").mkdir()  # a folder, not an image
    data = read_flickr30k(tmp_path)
    assert data.missing == ("11.jpg", "30.jpg")
    assert data.path_of("2.jpg") == tmp_path / "2.jpg"
    with pytest.raises(DataError) as error:
        data.path_of("30.jpg")
    assert str(error.value) == f"data {tmp_path}: image 30.jpg is missing"


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
        (b"b\0.jpg#0\tA dog", "needs an image file name"),
        (b"../x.jpg#0\tA dog", "needs an image file name"),
        (b"/x.jpg#0\tA dog", "needs an image file name"),
        (b"below/x.jpg#0\tA dog", "needs an image file name"),
        (b"..#0\tA dog", "needs an image file name"),
    ],
)
def test_a_malformed_line_is_reported_by_file_and_number(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / TOKEN_FILE
    path.write_bytes(b"a.jpg#0\tA dog\n" + line + b"\na.jpg#1\tA cat\n")
    with pytest.raises(DataError) as error:
        read_flickr30k(tmp_path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


KARPATHY = "dataset_flickr30k.json"
HUB = "flickr_annotations_30k.csv"
HEADER = "raw,sentids,split,filename,img_id\n"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (TOKEN_FILE, "", ": holds no captions"),
        ("results.csv", "", ":1: needs the header `image_name| comment_number| comment`"),
        ("results.csv", "a.jpg,0,A dog\n", ":1: needs the header `image_name| comment_number| comment`"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 4|\n",
         ":2: needs `image.jpg| 0| caption`"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| four| A dog\n",
         ":2: needs `image.jpg| 0| caption`"),
        (KARPATHY, "{", ": needs a JSON object with a list of `images`"),
        (KARPATHY, "[]", ": needs a JSON object with a list of `images`"),
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
         ":3: image a.jpg is in two splits"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_reported_with_what_it_needs(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_flickr30k(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}{reason}")


def test_damaged_markup_is_reported_by_file_and_line(tmp_path: Path) -> None:
    sentences = write_entities(tmp_path, ITEMS)
    (sentences / "2.txt").write_text("Two men\n[/EN#1/people Two men sit\n")
    with pytest.raises(DataError) as error:
        read_flickr30k(tmp_path)
    assert str(error.value).startswith(f"{sentences / '2.txt'}:2: needs `[/EN#1/people Two men]")


@pytest.mark.parametrize("cut", [slice(None, -9), slice(2, None)])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, cut: slice) -> None:
    path = write_gzipped(tmp_path, ITEMS)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(DataError, match=r"\.gz: damaged, cannot be decompressed"):
        read_flickr30k(tmp_path)


@pytest.mark.parametrize("write", [write_karpathy, write_hub])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, ITEMS)
    path.write_bytes(path.read_bytes().replace(b"An apple", b"A caf\xe9"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_flickr30k(tmp_path)


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    (tmp_path / IMAGE_FOLDER).mkdir()
    (tmp_path / IMAGE_FOLDER / "1.jpg").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as error:
            read_flickr30k(folder)
        assert str(error.value).startswith(f"data {folder}: not a Flickr30K folder; ")
        assert TOKEN_FILE in str(error.value)


@pytest.fixture
def pairs(tiny: Models) -> Path:
    """The tiny world's pairs, to be damaged."""
    assert tiny.data
    return Path(shutil.copytree(tiny.data, "pairs"))


def unlearn(tiny: Models, pairs: Path) -> Path:
    return erase_sd.unlearn(
        "apple", model=tiny.model, clip=tiny.clips, data=pairs, steps=2, retain_floor=0.0,
        max_residual=2.0,
    )  # fmt: skip


def test_unlearning_leaves_out_missing_images_and_reports_the_first(
    tiny: Models, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = split_by_concept(read_flickr30k(pairs).items, parse_concepts(["apple"]))
    for item in (sets.images("forget", "train")[0], sets.images("retain", "validation")[0]):
        (pairs / IMAGE_FOLDER / item.image).unlink()
    first = read_flickr30k(pairs).missing[0]
    run = Run(unlearn(tiny, pairs))
    assert f"2 of 100 images are missing, first {first}" in caplog.text
    assert run.unlearned().origin.missing_images == 2


def test_unlearning_without_any_image_is_refused_and_writes_nothing(
    tiny: Models, pairs: Path
) -> None:
    shutil.rmtree(pairs / IMAGE_FOLDER)
    with pytest.raises(DataError, match=r"100 of 100 images are missing, first 3000000000\.jpg;"):
        unlearn(tiny, pairs)
    assert not Path("runs").exists()


@pytest.fixture(scope="module")
def real() -> Dataset:
    if not REAL.is_dir():
        pytest.skip(f"real captions not available: {REAL}")
    return read_flickr30k(REAL)


def test_real_captions_are_read_five_per_image(real: Dataset) -> None:
    assert len(real.items) == 31_014
    assert {len(item.captions) for item in real.items} == {5}
    splits = [item.split for item in real.items]
    assert [splits.count(split) for split in SPLITS] == [29_000, 1_014, 1_000]
    assert len(real.missing) + len(list((REAL / IMAGE_FOLDER).iterdir())) == 31_014


def contains(caption: str, words: set[str], phrases: set[tuple[str, ...]]) -> bool:
    """Whether `caption` has one of `words` outside of the two-word `phrases`."""
    if not any(word in caption.lower() for word in words):
        return False
    text = ["", *(word.strip("-") for word in re.findall(r"[\w-]+", caption.lower())), ""]
    return any(
        word in words and not {(text[i - 1], word), (word, text[i + 1])} & phrases
        for i, word in enumerate(text)
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
def test_mentions_in_real_captions_agree_with_hand_checked_rules(
    real: Dataset, concept: str, words: str, other: str, images: int
) -> None:
    (parsed,) = parse_concepts([concept])
    phrases = {tuple(phrase.split()) for phrase in other.split(", ")}
    sets = split_by_concept(real.items, [parsed])
    wrong = [
        (item.image, caption)
        for item in real.items
        for caption, mentions in zip(item.captions, sets.mentions[item.image], strict=True)
        if bool(mentions) != contains(caption, set(words.split()), phrases)
    ]
    assert not wrong
    names = {s: [i.image for split in SPLITS for i in sets.images(s, split)] for s in CONCEPT_SETS}
    every = names["forget"] + names["retain"]
    assert len(names["forget"]) == images
    assert len(set(every)) == len(every) == 31_014
    assert all(sets.images(s, split) for s in CONCEPT_SETS for split in SPLITS)


EXCEL = {
    "UTF-8 with a mark": ("|", "utf-8-sig", "\n"),
    "CRLF": ("|", "utf-8", "\r\n"),
    "commas": (",", "utf-8-sig", "\r\n"),
    "semicolons": (";", "cp1252", "\r\n"),
    "Windows-1252": ("|", "cp1252", "\r\n"),
    "quoted cells": ('"', "cp1252", "\r\n"),
}


@pytest.mark.parametrize("form", EXCEL)
def test_a_results_file_that_a_spreadsheet_saved_again_is_the_same_dataset(
    tmp_path: Path, form: str
) -> None:
    separator, encoding, end = EXCEL[form]
    rows = [("image_name", "comment_number", "comment")]
    rows += [(i.image, str(n), t) for i in ITEMS for n, t in enumerate(i.captions)]
    if separator == '"':  # one cell a line
        cells = ["| ".join(row).replace('"', '""') for row in rows]
        lines = [cells[0], *(f'"{cell}"' for cell in cells[1:])]
    elif separator == "|":
        lines = ["| ".join(row) for row in rows]
    else:
        lines = [
            separator.join(f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row) for row in rows
        ]
        lines[0] = separator.join(rows[0])
    text = "".join(line + end for line in lines)
    (tmp_path / "results.csv").write_bytes(text.encode(encoding))
    read = read_flickr30k(tmp_path)
    assert [(i.image, i.captions) for i in read.items] == [(i.image, i.captions) for i in ITEMS]


def test_files_in_upper_case_are_found_and_hidden_ones_are_not_images(tmp_path: Path) -> None:
    write_token(tmp_path, ITEMS)
    (tmp_path / "images").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    for name in ("images/11.JPG", "images/._2.jpg", "__MACOSX/2.jpg", "images/30.jpg"):
        (tmp_path / name).write_bytes(b"")
    data = read_flickr30k(tmp_path)
    assert data.path_of("11.jpg") == tmp_path / "images" / "11.JPG"
    assert data.missing == ("2.jpg",)
