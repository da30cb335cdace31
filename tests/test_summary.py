"""`erase-sd data` counts what a folder holds, and reads no weights for it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read
from erase_sd.data.summary import cells, summarize
from erase_sd.models.presets import Models, resolve
from erase_sd.models.tokens import ruler_of

APPLE = Concept("apple")
SHARED = Path(__file__).parents[2] / "shared/data"


def words_of(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def folder(present: int = 40) -> Path:
    """20 images with an apple in two of three captions, 20 without; so many have a file."""
    lines = []
    for n in range(40):
        texts = ("a room", "an apple", "one apple on a table") if n < 20 else ("a dog runs",) * 2
        lines += [f"{n}.jpg#{k}\t{text}\n" for k, text in enumerate(texts)]
    Path("pairs").mkdir()
    Path("pairs/results_20130124.token").write_text("".join(lines))
    for n in range(present):
        Path(f"pairs/{n}.jpg").touch()
    return Path("pairs")


def test_images_captions_and_mentions_are_counted() -> None:
    found = summarize(read(folder()), [APPLE], words_of, room=4)
    assert (found.images, found.captions, found.mentions) == (40, 100, 40)
    assert (found.missing_images, found.first_missing) == (0, None)
    assert (found.shortest, found.median, found.longest) == (2, 3, 5)
    assert (found.room, found.too_long) == (4, 20)
    assert found.forget.images == {"train": 14, "validation": 2, "held-out": 4}
    assert found.retain.images == {"train": 14, "validation": 2, "held-out": 4}
    assert found.forget.split == found.retain.split == "ours"


def test_three_examples_of_both_sides_are_given() -> None:
    found = summarize(read(folder()), [APPLE], words_of, room=4)
    assert found.forget.examples == ["an apple"] * 3  # the caption that mentions it, not the first
    assert found.retain.examples == ["a dog runs"] * 3


def test_missing_images_are_counted_in_every_part() -> None:
    found = summarize(read(folder(present=30)), [APPLE], words_of, room=4)
    assert (found.missing_images, found.first_missing) == (10, "30.jpg")
    assert found.forget.images_there == found.forget.images
    assert sum(found.retain.images.values()) == 20
    assert sum(found.retain.images_there.values()) == 10
    lines = [f"{what}: {value}" for what, value in cells(found)]
    assert "images there: 30 of 40; 10 missing, first 30.jpg" in lines
    assert sum(line.startswith("  of them there: ") for line in lines) == 2


def test_captions_without_images_can_be_looked_at() -> None:
    found = summarize(read(folder(present=0)), [APPLE], words_of, room=4)
    assert found.missing_images == 40 and found.first_missing == "0.jpg"
    assert found.forget.images == {"train": 14, "validation": 2, "held-out": 4}


def test_the_datasets_own_split_is_told_from_ours() -> None:
    pairs = folder()
    others = [f"{n}.jpg#0\ta cat\n" for n in range(40, 100)]
    with (pairs / "results_20130124.token").open("a") as file:
        file.writelines(others)
    for name, numbers in (("train", range(60)), ("val", range(60, 80)), ("test", range(80, 100))):
        (pairs / f"{name}.txt").write_text("".join(f"{n}\n" for n in numbers))
    found = summarize(read(pairs), [APPLE], words_of, room=4)
    assert found.forget.split == "ours"
    assert found.retain.split == "the dataset's own"
    assert found.retain.images == {"train": 40, "validation": 20, "held-out": 20}


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["erase-sd", "data", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.fixture
def clip(tiny: Models) -> Path:
    """The tiny world's CLIP without its weights."""
    return Path(shutil.copytree(tiny.clips[0], "clip", ignore=lambda *_: ["model.safetensors"]))


def test_the_command_prints_a_table_without_reading_weights(
    tiny: Models, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = [str(tiny.data), "--concept", "apple", "--clip", str(clip)]
    assert not call(monkeypatch, *words)
    out = capsys.readouterr()
    assert out.err == ""
    for what in ("750 of 150 images", "150 of 150", "tokens a caption", "forget images",
                 "held-out; ours", "retain, for example"):  # fmt: skip
        assert what in out.out


def test_the_command_prints_one_json_object(
    tiny: Models, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concept", "apple", "--synonym", "pippin", "--clip", str(clip), "--json"]
    assert not call(monkeypatch, str(tiny.data), *words)
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["captions"], found["room"]) == (150, 750, 32)
    assert found["too_long"] == 0 < found["shortest"] <= found["median"] <= found["longest"]
    assert found["file"] == "results_20130124.token"
    total = sum(sum(found[side]["images"].values()) for side in ("forget", "retain"))
    assert total == 150
    fewer = ["--concept", "apple", "--keep-sense", "apple laptop", "--clip", str(clip), "--json"]
    assert not call(monkeypatch, str(tiny.data), *fewer)
    assert json.loads(capsys.readouterr().out)["mentions"] < found["mentions"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip", "--concept", "apple"], "--data clip: no dataset_flickr30k.json"),
        (["pairs", "--concept", "zeppelin"], "--concept zeppelin: in no caption of the data"),
        (["pairs", "--concept", "?"], "concept: needs a word"),
        (["pairs", "--concept", "apple", "--clip", "clip"], "clip: no model folder"),
        (["--concept", "apple", "--preset", "sd15"], "--data: "),
        (["pairs", "--concept", "apple", "--preset", "sd0"], "--preset sd0: unknown"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder()
    Path("clip").mkdir()
    assert call(monkeypatch, *words) == 1
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1
    assert out.err.startswith("erase-sd: ") and message in out.err


def test_the_real_captions_lengths_by_the_real_tokenizer() -> None:
    from transformers import CLIPConfig

    if not (SHARED / "clip-tokenizer").is_dir() or not (SHARED / "flickr30k").is_dir():
        pytest.skip(f"the real captions and tokenizer are not here: {SHARED}")
    CLIPConfig().save_pretrained("clip")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SHARED / "clip-tokenizer" / name, "clip")
    ruler = ruler_of(resolve(clip="clip"))
    data = read(SHARED / "flickr30k")
    long = [text for item in data.items for text in item.captions if len(text) > 200]
    lengths = ruler.lengths(long)
    assert ruler.limit == 77 and max(lengths) == 86 and sum(n > 77 for n in lengths) == 3
    assert ruler.lengths(["an apple"]) == [4]
