"""Prompts from a dataset are held-out captions, reproducible, and record their source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from erase_sd.cli import main
from erase_sd.cli.checks import prompt_files
from erase_sd.data.concept import Concept
from erase_sd.data.dataset import Dataset
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.pair import CaptionPair, PromptKind, Split
from erase_sd.data.prompts import (
    find_prompts,
    locate_prompts,
    prompts_name,
    read_prompt_file,
    warn_of_names,
    with_files_beside,
    write_prompts,
)
from erase_sd.data.split import hash_order, split_by_concept
from erase_sd.errors import DataError, SettingError
from erase_sd.files import write_text
from erase_sd.models.presets import Models

APPLE = Concept("apple")
OUT = Path("prompts/apple.txt")


def fits(text: str) -> bool:
    return len(text) < 60


@pytest.fixture
def data() -> Dataset:
    """60 images with an apple and 60 without, all captions different; 12 of each are held out."""
    folder = Path("pairs")
    folder.mkdir()
    lines = [
        f"{name}{n}.jpg#{k}\t{text} {n}\n"
        for n in range(60)
        for name, texts in (("a", ("a room", "an apple", "two apples")), ("b", ("a dog", "a cat")))
        for k, text in enumerate(texts)
    ]
    (folder / "results_20130124.token").write_text("".join(lines))
    return read_flickr30k(folder)


def texts(path: Path) -> list[str]:
    return list(read_prompt_file(path).texts)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_prompt_ends_with_its_line_and_with_no_other_separator(end: str) -> None:
    lines = ["an apple\u2028on a plate", "a dog\x0bin a park ", "", "\x0c", "# a cat", "a\x85cup"]
    Path("apple.txt").write_bytes(end.join(lines).encode())
    assert texts(Path("apple.txt")) == [
        "an apple\u2028on a plate",
        "a dog\x0bin a park",
        "a\x85cup",
    ]


def header(path: Path) -> dict[str, Any]:
    first = path.read_text().splitlines()[0]
    return dict(json.loads(first.removeprefix("# ")))


@pytest.mark.parametrize("split", ["held-out", "validation"])
def test_prompts_are_captions_of_one_split_with_the_concept_one_per_image(
    data: Dataset, split: Split
) -> None:
    assert write_prompts(data, [APPLE], OUT, 5, 0, fits, split=split) == {OUT: 5}
    pairs = split_by_concept(data.items, [APPLE]).pairs("forget", split)
    image_of = {pair.caption: pair.image for pair in pairs if pair.mentions}
    assert len({image_of[prompt] for prompt in texts(OUT)}) == 5
    assert (header(OUT)["set"], header(OUT)["split"]) == ("forget", split)


def test_a_prompt_mentions_one_of_several_concepts_and_its_file_may_have_any_free_name(
    data: Dataset,
) -> None:
    out = Path("retain.txt")  # free, because no retain prompts are written
    assert write_prompts(data, [APPLE, Concept("room")], out, 3, 0, fits) == {out: 3}
    assert all(text.startswith("a room") for text in texts(out))


def test_if_there_are_fewer_captions_all_are_written(data: Dataset) -> None:
    assert write_prompts(data, [APPLE], OUT, 50, 0, fits) == {OUT: 12}
    assert len(texts(OUT)) == 12


def test_the_seed_alone_chooses(data: Dataset) -> None:
    prompts = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        write_prompts(data, [APPLE], Path(name), 5, seed, fits)
        prompts.append(texts(Path(name)))
    assert prompts[0] == prompts[1] != prompts[2]


def test_fewer_prompts_are_the_first_of_more(data: Dataset) -> None:
    write_prompts(data, [APPLE], Path("few"), 4, 0, fits)
    write_prompts(data, [APPLE], Path("more"), 9, 0, fits)
    assert texts(Path("more"))[:4] == texts(Path("few"))


def test_duplicates_comments_and_captions_that_are_too_long_are_left_out() -> None:
    captions = ["an apple", "An Apple", "# apple", "an apple " + "and more " * 9]
    lines = [f"{n}.jpg#0\t{captions[n % 4]}\n" for n in range(80)]
    lines += [f"{n}.jpg#0\ta dog\n" for n in range(80, 90)]
    Path("results_20130124.token").write_text("".join(lines))
    data = read_flickr30k(Path())
    assert write_prompts(data, [APPLE], OUT, 50, 0, fits) == {OUT: 1}
    images = hash_order(split_by_concept(data.items, [APPLE]).images("forget", "held-out"))
    held_out = [item.captions[0] for item in images if item.captions[0].lower() == "an apple"]
    assert texts(OUT) == held_out[:1] and set(held_out) == {"an apple", "An Apple"}
    assert header(OUT)["folder"] == Path.cwd().name


def test_the_retain_file_has_held_out_captions_of_images_without_the_concept(data: Dataset) -> None:
    retain = OUT.with_name("retain.txt")
    assert write_prompts(data, [APPLE], OUT, 8, 0, fits, retain=True) == {OUT: 8, retain: 8}
    held_out = split_by_concept(data.items, [APPLE]).pairs("retain", "held-out")
    assert set(texts(retain)) <= {pair.caption for pair in held_out}
    assert header(retain) == header(OUT) | {"set": "retain"}


def test_the_first_line_records_the_source_without_an_absolute_path(
    data: Dataset, tmp_path: Path
) -> None:
    concept = Concept("apple", ("pippin",), ("apple pie",))
    write_prompts(read_flickr30k(data.folder.resolve()), [concept], OUT, 3, 7, fits)
    assert header(OUT) == {
        "folder": "pairs", "file": "results_20130124.token", "digest": data.digest,
        "concepts": [{"name": "apple", "synonyms": ["pippin"], "keep_senses": ["apple pie"]}],
        "seed": 7, "set": "forget", "split": "held-out", "count": 3,
    }  # fmt: skip
    assert str(tmp_path) not in OUT.read_text()


def test_writing_the_same_again_is_allowed_but_another_file_is_never_overwritten(
    data: Dataset,
) -> None:
    write_prompts(data, [APPLE], OUT, 3, 0, fits)
    before = OUT.read_bytes()
    write_prompts(data, [APPLE], OUT, 3, 0, fits)
    retain = OUT.with_name("retain.txt")
    retain.write_bytes(b"caf\xe9\n")
    OUT.unlink()
    with pytest.raises(SettingError, match=r"^out prompts/retain\.txt: exists with other"):
        write_prompts(data, [APPLE], OUT, 3, 0, fits, retain=True)
    assert not OUT.exists() and retain.read_bytes() == b"caf\xe9\n"
    OUT.write_bytes(before)
    with pytest.raises(SettingError, match=r"^out prompts/apple\.txt: exists with other"):
        write_prompts(data, [APPLE], OUT, 4, 0, fits)
    assert OUT.read_bytes() == before
    with pytest.raises(SettingError, match=r"^out pairs: exists with other"):
        write_prompts(data, [APPLE], data.folder, 3, 0, fits)


def test_it_is_an_error_if_no_caption_fits(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"^data pairs: no held-out caption for apple\.txt"):
        write_prompts(data, [APPLE], OUT, 3, 0, lambda _: False)
    assert not OUT.exists()


@pytest.mark.parametrize(
    ("name", "kind", "concept", "in_forget"),
    [
        ("hot-dog", "plain", None, [True, False]),
        ("hot-dog.synonym", "synonym", "hot dog", [True, True]),
        ("hot-dog.look-alike", "look-alike", "hot dog", [False, False]),
        ("cat.name-free", "name-free", "cat", [True, True]),
    ],
)
def test_a_prompt_carries_kind_concept_mentions_and_set(
    name: str, kind: PromptKind, concept: str | None, in_forget: list[bool]
) -> None:
    path = Path(f"{name}.txt")
    path.write_text("# a comment\n\n a hot dog and an apple \na sausage\n")
    assert read_prompt_file(path).pairs([APPLE, Concept("hot dog")]) == [
        CaptionPair(
            caption=caption, image=None, mentions=mentions, set="forget" if forget else "retain",
            split="held-out", kind=kind, concept=concept,
        )
        for caption, mentions, forget in zip(
            ("a hot dog and an apple", "a sausage"), (("apple", "hot dog"), ()), in_forget,
            strict=True,
        )
    ]  # fmt: skip


def test_prompts_of_the_working_directory_come_before_the_packaged_ones() -> None:
    packaged = find_prompts("Apple")
    assert packaged.is_file() and packaged.name == "apple.txt" and packaged != OUT
    assert locate_prompts(OUT) == packaged
    assert [packaged] == prompt_files([OUT], ["apple"])  # of `erase-sd run`
    assert locate_prompts(Path("other/apple.txt")) == Path("other/apple.txt")
    assert locate_prompts(Path("py.typed")) == Path("py.typed")  # the package has one, too
    assert packaged.with_name("retain.txt").is_file()
    OUT.parent.mkdir()
    OUT.write_text("an apple\n")
    assert find_prompts("Apple") == locate_prompts(OUT) == OUT
    with pytest.raises(DataError) as error:
        find_prompts("Light House")
    assert error.value.field == "prompts"
    assert "prompts/light-house.txt: no such file" in str(error.value)


def test_a_file_beside_that_is_also_named_is_read_once() -> None:
    write_text(OUT, "an apple\n")
    write_text(OUT.with_name("retain.txt"), "a dog\n")
    retain = OUT.with_name("retain.txt")
    for named in (
        [OUT, retain],
        [OUT, retain.resolve()],
        [OUT, Path("prompts/../prompts/retain.txt")],
    ):
        assert with_files_beside(named, kinds=False) == named
    assert with_files_beside([OUT], kinds=False) == [OUT, retain]


def test_retain_prompts_lie_beside_the_first_file_and_kinds_beside_each() -> None:
    kinds = [OUT.with_name("apple.synonym.txt"), Path("dog.look-alike.txt")]
    for file in (OUT.with_name("retain.txt"), Path("retain.txt"), *kinds):
        write_text(file, "a dog\n")
    named = [OUT, Path("dog.txt")]
    assert with_files_beside(named, kinds=False) == [*named, OUT.with_name("retain.txt")]
    assert with_files_beside(named, kinds=True) == [*named, OUT.with_name("retain.txt"), *kinds]
    for name in ("-", "/dev/stdin"):  # beside no file
        assert with_files_beside([Path(name)], kinds=False) == [Path(name)]
        assert prompts_name(Path(name)) == "stdin"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["erase-sd", "prompts", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command_writes_prompt_files(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concept", "apple", "--clip", str(tiny.clips[0]), "--data", str(tiny.data)]
    assert not call(monkeypatch, *words, "--n", "2", "--retain")
    out = capsys.readouterr().out
    assert out == "prompts/apple.txt: 2 prompts\nprompts/retain.txt: 2 prompts\n"
    assert len(texts(OUT)) == 2
    assert not call(monkeypatch, *words, "--n", "500", "--out", "more.txt")
    count = len(texts(Path("more.txt")))
    note = "no more held-out images have a suitable caption"
    assert capsys.readouterr().out == f"more.txt: {count} prompts; {note}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--concept", "zeppelin"], "--concept zeppelin: in no caption of the data"),
        (["--concept", "apple", "--n", "0"], "--n: needs at least 1, got 0"),
        (["--concept", "apple", "--data", "."], "--data .: holds no caption pairs"),
        (["--concept", "apple", "--clip", "nowhere"], "--clip nowhere: no such folder"),
        (["--concept", "apple", "--clip", "bare"], "--clip bare: no tokenizer"),
        (["--concept", "apple", "--clip", "damaged"], "--clip damaged: tokenizer cannot be loaded"),
        (["--concept", "apple", "--preset", "sd15"], "--clip"),
        (
            ["--concept", "apple", "--out", "retain.txt", "--retain"],
            "--out retain.txt: is for the retain prompts",
        ),
        (["--concept", "apple", "--synonym", "x=y"], "--synonym x=y: needs concept=synonym"),
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


def test_name_free_prompts_that_name_the_concept_are_counted_in_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = {"apple.name-free": "a red fruit\nthree apples\n", "apple.synonym": "an apple\n"}
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    files = [read_prompt_file(Path(f"{name}.txt")) for name in texts]
    warn_of_names(files, [Concept("dog"), Concept("apple", synonyms=("red fruit",))])
    assert caplog.messages == [
        "apple.name-free.txt: 1 of 2 prompts name apple; name-free prompts only describe it"
    ]
