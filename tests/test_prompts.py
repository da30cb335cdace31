"""Prompts from a dataset are held-out captions, always the same, and say where they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import Dataset, read
from erase_sd.data.prompts import from_data, read_prompts
from erase_sd.data.split import Part, split
from erase_sd.errors import DataError, SettingError
from erase_sd.models.presets import Models

APPLE = Concept("apple")
OUT = Path("prompts/apple.txt")


def fits(text: str) -> bool:
    return len(text) < 60


@pytest.fixture
def data() -> Dataset:
    """60 images with an apple, 60 without, no two captions alike; 12 of each are held out."""
    folder = Path("pairs")
    folder.mkdir()
    lines = [
        f"{side}{n}.jpg#{k}\t{text} {n}\n"
        for n in range(60)
        for side, texts in (("a", ("a room", "an apple", "two apples")), ("b", ("a dog", "a cat")))
        for k, text in enumerate(texts)
    ]
    (folder / "results_20130124.token").write_text("".join(lines))
    return read(folder)


def header(path: Path) -> dict[str, Any]:
    first = path.read_text().splitlines()[0]
    return dict(json.loads(first.removeprefix("# ")))


@pytest.mark.parametrize("part", ["held-out", "validation"])
def test_prompts_are_captions_of_a_part_and_the_concept_one_an_image(
    data: Dataset, part: Part
) -> None:
    assert from_data(data, [APPLE], OUT, 5, 0, fits, part=part) == {OUT: 5}
    prompts = read_prompts(OUT)
    inside = split(data.items, [APPLE]).forget[part]
    image_of = {caption: item.image for item in inside for caption in item.captions}
    assert all(prompt in image_of and APPLE.in_text(prompt) for prompt in prompts)
    assert len({image_of[prompt] for prompt in prompts}) == 5
    assert header(OUT)["part"] == f"forget, {part}"


def test_where_there_are_fewer_all_are_taken(data: Dataset) -> None:
    assert from_data(data, [APPLE], OUT, 50, 0, fits) == {OUT: 12}
    assert len(read_prompts(OUT)) == 12


def test_the_seed_alone_chooses(data: Dataset) -> None:
    made = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        from_data(data, [APPLE], Path(name), 5, seed, fits)
        made.append(read_prompts(Path(name)))
    assert made[0] == made[1] != made[2]


def test_fewer_prompts_are_the_first_of_more(data: Dataset) -> None:
    from_data(data, [APPLE], Path("few"), 4, 0, fits)
    from_data(data, [APPLE], Path("more"), 9, 0, fits)
    assert read_prompts(Path("more"))[:4] == read_prompts(Path("few"))


def test_captions_that_are_alike_too_long_or_read_as_a_comment_are_left_out() -> None:
    texts = ["an apple", "An Apple", "# apple", "an apple " + "and more " * 9]
    lines = [f"{n}.jpg#0\t{texts[n % 4]}\n" for n in range(80)]
    lines += [f"{n}.jpg#0\ta dog\n" for n in range(80, 90)]
    Path("results_20130124.token").write_text("".join(lines))
    from_data(read(Path()), [APPLE], OUT, 50, 0, fits)
    (prompt,) = read_prompts(OUT)
    assert prompt.lower() == "an apple"


def test_the_retain_file_has_held_out_captions_of_the_other_images(data: Dataset) -> None:
    retain = OUT.with_name("retain.txt")
    assert from_data(data, [APPLE], OUT, 8, 0, fits, retain=True) == {OUT: 8, retain: 8}
    held_out = split(data.items, [APPLE]).retain["held-out"]
    captions = {caption for item in held_out for caption in item.captions}
    assert set(read_prompts(retain)) <= captions
    assert header(retain) == header(OUT) | {"part": "retain, held-out"}


def test_the_first_line_says_where_they_come_from_and_names_no_path_of_the_machine(
    data: Dataset, tmp_path: Path
) -> None:
    concept = Concept("apple", ("pippin",), ("apple pie",))
    from_data(read(data.folder.resolve()), [concept], OUT, 3, 7, fits)
    assert header(OUT) == {
        "folder": "pairs", "file": "results_20130124.token", "digest": data.digest,
        "concepts": [{"name": "apple", "synonyms": ["pippin"], "keep_senses": ["apple pie"]}],
        "seed": 7, "part": "forget, held-out", "count": 3,
    }  # fmt: skip
    assert str(tmp_path) not in OUT.read_text()


def test_the_same_again_is_no_error_and_another_file_is_never_overwritten(data: Dataset) -> None:
    from_data(data, [APPLE], OUT, 3, 0, fits)
    before = OUT.read_bytes()
    from_data(data, [APPLE], OUT, 3, 0, fits)
    retain = OUT.with_name("retain.txt")
    retain.write_bytes(b"caf\xe9\n")
    OUT.unlink()
    with pytest.raises(SettingError, match=r"--out prompts/retain\.txt: is there"):
        from_data(data, [APPLE], OUT, 3, 0, fits, retain=True)
    assert not OUT.exists() and retain.read_bytes() == b"caf\xe9\n"
    OUT.write_bytes(before)
    with pytest.raises(SettingError, match=r"--out prompts/apple\.txt: is there"):
        from_data(data, [APPLE], OUT, 4, 0, fits)
    assert OUT.read_bytes() == before


def test_no_caption_that_fits_is_an_error(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"no held-out caption for apple\.txt fits"):
        from_data(data, [APPLE], OUT, 3, 0, lambda _: False)
    assert not OUT.exists()


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["erase-sd", "prompts", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command_writes_prompts_that_generate_takes(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concept", "apple", "--clip", str(tiny.clips[0]), "--data", str(tiny.data)]
    assert not call(monkeypatch, *words, "--n", "2", "--retain")
    out = capsys.readouterr().out
    assert out == "prompts/apple.txt: 2 prompts\nprompts/retain.txt: 2 prompts\n"
    assert len(read_prompts(OUT)) == 2
    assert not call(monkeypatch, *words, "--n", "500", "--out", "more.txt")
    count = len(read_prompts(Path("more.txt")))
    note = f"the held-out images give no more than {count}"
    assert capsys.readouterr().out == f"more.txt: {count} prompts; {note}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--concept", "zeppelin"], "--concept zeppelin: in no caption of the data"),
        (["--concept", "apple", "--n", "0"], "--n: needs at least 1, got 0"),
        (["--concept", "apple", "--data", "."], "--data .: no dataset_flickr30k.json"),
        (["--concept", "apple", "--clip", "nowhere"], "--clip nowhere: no such folder"),
        (["--concept", "apple", "--clip", "bare"], "--clip bare: has no tokenizer"),
        (["--concept", "apple", "--clip", "damaged"], "--clip damaged: tokenizer cannot be loaded"),
        (["--concept", "apple", "--preset", "sd15"], "--clip"),
        (["--concept", "apple", "--out", "retain.txt", "--retain"], "is where --retain writes"),
        (["--concept", "apple", "--synonym", "x=y"], "--synonym x=y: needs concept=synonym"),
        (["--concept", "apple", "--part", "test"], "--part test: unknown; needs one of train, "),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tiny: Models,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("bare", "damaged"):
        Path(name).mkdir()
        Path(name, "config.json").write_text('{"model_type": "clip"}')
    Path("damaged/tokenizer.json").write_text("{")
    if "--data" not in words:
        words = [*words, "--data", str(tiny.data)]
    if "--clip" not in words and "--preset" not in words:
        words = [*words, "--clip", str(tiny.clips[0])]
    assert call(monkeypatch, *words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("erase-sd: ") and message in line
    assert not list(Path().glob("**/*.txt"))
