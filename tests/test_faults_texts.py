"""Texts that no file of captions should hold: half characters, megabytes, endless nesting."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty import Faults
from PIL import Image
from test_faults_caches import at_once, put
from unlearn_runs import short

from erase_sd.api import concept_removed
from erase_sd.data import formats
from erase_sd.data.class_folders import read_class_folders
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.prompts import PromptFile
from erase_sd.data.readers import read_dataset
from erase_sd.data.removal import MAX_CHARACTERS, remove_concepts_from
from erase_sd.detection.benchmark import read_boxes
from erase_sd.errors import DataError, EraseError, RunError, SettingError
from erase_sd.generation.plan import plan
from erase_sd.models import single_file
from erase_sd.models.presets import Models
from erase_sd.run import Run, run_folder
from erase_sd.unlearning.stage import unlearn

pytestmark = pytest.mark.faults
HALF = "\ud83c"
"""Half of an emoji's surrogate pair, as `"\\ud83c"` in JSON."""
TEXTS = {
    "half a surrogate pair": (f"an apple {HALF} on a table", f"{HALF}"),
    "a NUL": ("an apple\0 on a table", "table"),
    "2 million characters": ("a dog and an apple " * 110_000, "dog"),
    "a chain of mentions": ("an apple " + "of an apple " * 3000, "of"),
    "writing from right to left": ("\u202ean apple\u202c on a table", "table"),
    "a pile of accents": ("an a" + "\u0301" * 500 + " and an apple", "an"),
    "nothing but the name": ("apple", ""),
}


@pytest.mark.parametrize("what", TEXTS)
def test_any_text_can_lose_a_concept(what: str, faults: Faults) -> None:
    text, kept = TEXTS[what]
    with faults("odd texts", f"concept removed: {what}"):
        without = concept_removed(text, "apple")
        assert kept in without and not Concept("apple").in_text(without)


def test_a_long_text_loses_the_name_alone(faults: Faults) -> None:
    long = "a dog beside an apple, " * (MAX_CHARACTERS // 20)
    with faults("odd texts", "a caption that is too long to parse"):
        [(text, removed), (short, _)] = remove_concepts_from(
            [long, "a dog and an apple"], [Concept("apple")]
        )
        assert text.startswith("a dog beside an , a dog") and short == "a dog"
        assert {long[start:end] for start, end in removed} == {"apple"}


@pytest.mark.parametrize("phrase", [f"apple{HALF}", "a" * 301, "", " ", "?!"])
def test_names_that_no_prompt_holds_are_refused(phrase: str, faults: Faults) -> None:
    for field in ("name", "synonyms", "keep_senses"):
        with faults("odd texts", f"concept, {field}: {phrase[:9]!r}"):
            with pytest.raises(SettingError, match="needs"):
                value = phrase if field == "name" else (phrase,)
                Concept(**{"name": "apple", field: value})  # type: ignore[arg-type]


def karpathy(filename: str = "1.jpg", raw: str = "an apple") -> str:
    image = {"filename": filename, "split": "train", "sentences": [{"raw": raw}]}
    return json.dumps({"images": [image]})


HUB = "raw,filename,split\n"
BAR = "image_name| comment_number| comment\n"
FILES = {
    "half a character in a caption": ("dataset_flickr30k.json", karpathy(raw=f"an apple {HALF}")),
    "half a character in a name": ("dataset_flickr30k.json", karpathy(filename=f"{HALF}.jpg")),
    "nested lists": ("dataset_flickr30k.json", "[" * 200_000),
    "a number of 9,999 digits": ("dataset_flickr30k.json", "9" * 9999),
    "half a character in a cell": ("flickr_annotations_30k.csv", HUB + '"[""\\ud83c""]",1.jpg,train\n'),
    "nested lists in a cell": ("flickr_annotations_30k.csv", HUB + "[" * 100_000 + ",1.jpg,train\n"),
    "digits in a cell": ("flickr_annotations_30k.csv", HUB + "9" * 9999 + ",1.jpg,train\n"),
    "a cell of 200 kB": ("flickr_annotations_30k.csv", HUB + "x" * 200_000 + ",1.jpg,train\n"),
    "a quoted line of 200 kB": ("results.csv", BAR + f'"1.jpg| 0| {"x" * 200_000}"\n'),
    "a spreadsheet's cell of 200 kB": (
        "results.csv", f"image_name,comment_number,comment\n1.jpg,0,{'x' * 200_000}\n"),
    "a quote that never ends": (
        "results.csv", f'image_name,comment_number,comment\n1.jpg,0,"{"x," * 100_000}\n'),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_files_of_captions_that_are_odd_inside_are_one_line(what: str, faults: Faults) -> None:
    name, text = FILES[what]
    Path("data").mkdir()
    Path("data", name).write_text(text)
    with faults("odd texts", f"{name}: {what}"):
        with pytest.raises(DataError) as caught:
            read_flickr30k(Path("data"))
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


def test_a_file_of_captions_beyond_bounds_is_not_read(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_BYTES", 100)
    for name in ("results_20130124.token", "results.csv", "dataset_flickr30k.json"):
        folder = Path(name.partition(".")[0])
        folder.mkdir()
        (folder / name).write_text("1.jpg#0\tAn apple .\n" * 9)
        with faults("resource bounds", f"captions: {name}"):
            with pytest.raises(DataError, match="holds more than"):
                read_flickr30k(folder)


def test_names_of_classes_and_images_that_are_not_utf_8_are_one_line(faults: Faults) -> None:
    for what, names in {
        "class": (b"caf\xe9/1.jpg", b"dog/1.jpg"), "image": (b"apple/\xe9.jpg", b"dog/1.jpg")
    }.items():  # fmt: skip
        folder = Path(what)
        for name in names:
            path = folder / name.decode("utf-8", "surrogateescape")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        with faults("odd texts", f"folders of classes: a name of a {what} that is not UTF-8"):
            with pytest.raises(DataError, match="not UTF-8"):
                read_dataset(folder)


def test_names_that_the_results_could_not_hold_are_known_before_the_work(faults: Faults) -> None:
    for what, name in (
        ("not UTF-8", "caf\udce9"),
        ("250 bytes", "x" * 250),
        ("emoji", "\U0001f34e" * 60),
    ):
        with faults("odd names", f"prompt file: {what}"):
            with pytest.raises(DataError, match="needs UTF-8 of at most 200 bytes"):
                plan(
                    [PromptFile(Path(f"{name}.txt"), "0", ("an apple",))], [Concept("apple")], 1, 0
                )
    with faults("odd names", "run: not UTF-8"), pytest.raises(SettingError, match="UTF-8"):
        run_folder("caf\udce9")
    with faults("odd names", "run: in a folder that is not UTF-8"):
        assert run_folder("caf\udce9/apple") == Path("caf\udce9/apple")


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and links of POSIX")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_in_a_folder_of_a_class_is_left_out(
    kind: str, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("apple/1.jpg", "dog/1.jpg"):
        Path("data", name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(Path("data", name))
    put(Path("data/dog/2.jpg"), kind)
    with (
        faults("not regular files", f"folders of classes: {kind}"),
        at_once(Path("data/dog/2.jpg")),
    ):
        data = read_class_folders(Path("data"))
        assert len(data.items) == 2 and data.images_digest
        assert "left out, first dog/2.jpg" in caplog.text


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"nan 0 0 0 0", b"0 nan 0 0 0", b"0 0 0 0", b"0 2 0 0 0"]
)
def test_boxes_that_are_none_are_one_line(line: bytes, faults: Faults) -> None:
    Path("boxes.txt").write_bytes(b"0 0.5 0.5 0.1 0.1\n" + line)
    with faults("odd texts", f"boxes: {line!r}"):
        with pytest.raises(DataError, match=r"boxes.txt:2: needs a class"):
            read_boxes(Path("boxes.txt"), (64, 64), ["apple"])


def test_a_disk_that_is_too_small_for_a_converted_checkpoint_is_known_before(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.safetensors").write_bytes(b"x" * 5000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(single_file, "_kind", lambda _: ("StableDiffusionPipeline", "x/y"))
    with faults("full disks", "a single-file checkpoint: known before"):
        with pytest.raises(RunError, match="are free on its disk"):
            single_file.folder_of(Path("x.safetensors"))


def test_retain_captions_that_are_all_the_same_are_no_divergence(
    tiny: Models, tmp_path: Path, faults: Faults
) -> None:
    shutil.copytree(tiny.pairs(), tmp_path / "data")
    [file] = (tmp_path / "data").rglob("*.token")
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    with_apples = {name.split("#")[0] for name, text in lines if Concept("apple").in_text(text)}
    file.write_text(
        "".join(
            f"{name}\t{text if name.split('#')[0] in with_apples else 'a dog'}\n"
            for name, text in lines
        )
    )
    models = dataclasses.replace(tiny, data=tmp_path / "data")
    with faults("odd texts", "retain captions that are all the same"):
        try:
            unlearn(short(mine_mentions=False), models, Run(Path("runs/apple")))
        except EraseError as error:
            assert "different captions" in str(error)
