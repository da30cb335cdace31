"""`erase-sd data` counts what a folder holds about a concept, without reading weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.summary import summarize, summary_lines
from erase_sd.models.presets import Models, resolve
from erase_sd.models.tokens import token_limit_of

APPLE = Concept("apple")
SHARED = Path(__file__).parents[2] / "shared/data"


def word_counts(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def folder(present: int = 40) -> Path:
    """20 images with an apple in two of three captions and 20 without, some of them with a file."""
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
    summary = summarize(read_flickr30k(folder()), [APPLE], word_counts, 4)
    assert (summary.images, summary.captions, summary.mentions) == (40, 100, 40)
    assert (summary.missing_images, summary.first_missing) == (0, None)
    assert (summary.shortest, summary.median, summary.longest) == (2, 3, 5)
    assert (summary.context_length, summary.too_long) == (4, 20)
    for images in (summary.forget, summary.retain):
        assert images.images == {"train": 14, "validation": 2, "held-out": 4}
        assert not images.own_split


def test_reductions_are_counted_and_shown() -> None:
    summary = summarize(read_flickr30k(folder()), [APPLE], word_counts, 4)
    reductions = summary.reductions
    assert (reductions.captions, reductions.empty, reductions.unreduced) == (40, 20, [])
    assert reductions.examples == [("an apple", "")] * 20
    lines = dict(summary_lines(summary))
    assert lines["concept removed"].startswith("40 captions in ")
    assert lines["concept removed"].endswith("20 have nothing left; 0 still mention it")
    assert lines["  example"] == "an apple -> (empty)"


def test_captions_that_cannot_be_reduced_are_shown() -> None:
    pairs = folder()
    with (pairs / "results_20130124.token").open("a") as file:
        file.write("0.jpg#3\thot hot dog dog\n1.jpg#3\ta hot dog\n2.jpg#3\ta hot dog\n")
    summary = summarize(read_flickr30k(pairs), [Concept("hot dog")], word_counts, 4)
    assert summary.reductions.unreduced == ["hot hot dog dog"]
    assert ("  still mentions it", "hot hot dog dog") in summary_lines(summary)


def test_each_set_has_three_examples() -> None:
    summary = summarize(read_flickr30k(folder()), [APPLE], word_counts, 4)
    assert summary.forget.examples == ["an apple"] * 3  # the first caption that mentions it
    assert summary.retain.examples == ["a dog runs"] * 3


def test_missing_images_are_counted_in_every_split() -> None:
    summary = summarize(read_flickr30k(folder(present=30)), [APPLE], word_counts, 4)
    assert (summary.missing_images, summary.first_missing) == (10, "30.jpg")
    assert summary.forget.images_present == summary.forget.images
    assert sum(summary.retain.images.values()) == 20
    assert sum(summary.retain.images_present.values()) == 10
    lines = [f"{name}: {value}" for name, value in summary_lines(summary)]
    assert "image files: 30 of 40; 10 missing, first 30.jpg" in lines
    assert "forget images: 20: 14 train, 2 validation, 4 held-out; split by erase-sd" in lines
    assert sum(line.startswith("  with a file: ") for line in lines) == 2


def test_captions_without_any_image_are_summarized() -> None:
    summary = summarize(read_flickr30k(folder(present=0)), [APPLE], word_counts, 4)
    assert summary.missing_images == 40 and summary.first_missing == "0.jpg"
    assert summary.forget.images == {"train": 14, "validation": 2, "held-out": 4}


def test_the_datasets_own_split_is_recognised() -> None:
    pairs = folder()
    others = [f"{n}.jpg#0\ta cat\n" for n in range(40, 100)]
    with (pairs / "results_20130124.token").open("a") as file:
        file.writelines(others)
    for name, numbers in (("train", range(60)), ("val", range(60, 80)), ("test", range(80, 100))):
        (pairs / f"{name}.txt").write_text("".join(f"{n}\n" for n in numbers))
    summary = summarize(read_flickr30k(pairs), [APPLE], word_counts, 4)
    assert not summary.forget.own_split
    assert summary.retain.own_split
    assert summary.retain.images == {"train": 40, "validation": 20, "held-out": 20}


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
    for cell in ("500 of 100 images", "100 of 100", "tokens per caption", "forget images",
                 "held-out; split by erase-sd", "retain example"):  # fmt: skip
        assert cell in out.out


def test_mentions_are_listed_without_the_progress_bars_of_transformers(tiny: Models) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "erase_sd", "data", str(tiny.data), "--concept", "apple",
         "--clip", str(tiny.clips[0]), "--mentions"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.splitlines()[-1].startswith("apple: other mentions: ")
    assert shown.stderr == ""


def test_the_command_prints_one_json_object(
    tiny: Models, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concept", "apple", "--synonym", "pippin", "--clip", str(clip), "--json"]
    assert not call(monkeypatch, str(tiny.data), *words)
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"], summary["captions"], summary["context_length"]) == (100, 500, 32)
    assert summary["too_long"] == 0 < summary["shortest"] <= summary["median"] <= summary["longest"]
    assert summary["file"] == "results_20130124.token"
    assert sum(sum(summary[s]["images"].values()) for s in ("forget", "retain")) == 100
    fewer = ["--concept", "apple", "--keep-sense", "apple laptop", "--clip", str(clip), "--json"]
    assert not call(monkeypatch, str(tiny.data), *fewer)
    assert json.loads(capsys.readouterr().out)["mentions"] < summary["mentions"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["clip", "--concept", "apple"],
            "data clip: holds no caption pairs; needs Flickr30K (dataset_flickr30k.json",
        ),
        (["pairs", "--concept", "zeppelin"], "--concept zeppelin: in no caption of the data"),
        (["pairs", "--concept", "?"], "--concept '?': needs a word"),
        (["pairs", "--concept", "apple", "--clip", "clip"], "clip: not a model folder"),
        (["--concept", "apple", "--preset", "sd15"], "data: stable-diffusion-v1-5"),
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


def test_real_captions_are_counted_by_the_real_tokenizer() -> None:
    from transformers import CLIPConfig

    if not (SHARED / "clip-tokenizer").is_dir() or not (SHARED / "flickr30k").is_dir():
        pytest.skip(f"real captions and tokenizer not available: {SHARED}")
    CLIPConfig().save_pretrained("clip")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SHARED / "clip-tokenizer" / name, "clip")
    tokens = token_limit_of(resolve(clip="clip"))
    data = read_flickr30k(SHARED / "flickr30k")
    long = [text for item in data.items for text in item.captions if len(text) > 200]
    counts = tokens.counts(long)
    assert tokens.limit == 77 and max(counts) == 86 and sum(n > 77 for n in counts) == 3
    assert tokens.counts(["an apple"]) == [4]
