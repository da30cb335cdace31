"""The detector's process: begun early, kept from call to call, and at work while images are generated."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty import side_by_side
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_scoring import grey_image, unlearned

from erase_sd.cli.stage_process import in_stage_process
from erase_sd.data.pair import CaptionPair
from erase_sd.detection import detector
from erase_sd.detection.detector import detect, detector_kept
from erase_sd.errors import DataError, SettingError
from erase_sd.files import hash_file, write_records
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import detections
from erase_sd.scoring.ahead import DetectionAhead, detecting_ahead
from erase_sd.scoring.stage import score

PAIR = CaptionPair(
    caption="an apple on a couch", image=None, mentions=("apple",), set="forget", split="held-out"
)


@pytest.fixture
def run(tiny: Models) -> Run:
    """A run with four pairs of images, all of them noise."""
    run = Run(Path("runs/apple"))
    with run.stage("unlearn", {}, **unlearned("apple")):
        run.update(models=tiny.overrides)
    rows = []
    for variant in ("original", "erased"):
        grey = grey_image(run, variant, PAIR)  # type: ignore[arg-type]
        for number in range(4):
            file = f"images/{variant}/p-{number:04}.png"
            noise = np.random.default_rng(len(rows)).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(run.folder / file)
            sha256 = hash_file(run.folder / file)
            rows.append(dataclasses.replace(grey, file=file, sha256=sha256, seed=number))
    with run.stage("generate", {}):
        write_records(run.folder / "images.jsonl", rows)
    return run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the detector got."""
    calls: list[int] = []

    def counted(path: Path, files: list[Path], *more: object) -> detector.DetectorAnswer:
        calls.append(len(files))
        return detect(path, files, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(detections, "detect", counted)
    monkeypatch.setattr("erase_sd.scoring.ahead.CHUNK", 3)
    return calls


def pid() -> int:
    """That of the detector's process."""
    assert detector._kept._process is not None
    return detector._kept._process._process.pid


def test_what_was_detected_while_images_are_generated_is_not_detected_again(
    tiny: Models, run: Run, seen: list[int]
) -> None:
    expected = score(run, tiny)
    rows = run.detections()
    (run.folder / "detections.jsonl").unlink()
    seen.clear()
    ahead = DetectionAhead(run, tiny, (), "cuda")
    run.folder.joinpath("images.jsonl").rename("later.jsonl")
    ahead.detect_new()  # before the first image is recorded
    Path("later.jsonl").rename(run.folder / "images.jsonl")
    for _ in range(4):
        ahead.detect_new()
    assert seen == [3, 3] and not (run.folder / "detections.jsonl").exists()
    ahead.write()
    assert score(run, tiny) == expected
    assert seen == [3, 3, 2] and run.detections() == rows


def test_a_cpu_leaves_the_images_to_the_score_stage(
    tiny: Models, run: Run, seen: list[int]
) -> None:
    ahead = DetectionAhead(run, tiny, (), "cpu")
    ahead.detect_new()
    ahead.write()
    assert not seen and not (run.folder / "detections.jsonl").exists()


def test_images_that_are_generated_anew_are_detected_anew(
    tiny: Models, run: Run, seen: list[int]
) -> None:
    ahead = DetectionAhead(run, tiny, (), "cuda")
    for _ in range(2):
        ahead.detect_new()
    file = run.folder / run.images()[0].file
    Image.new("RGB", (32, 32), "red").save(file)
    rows = [
        dataclasses.replace(row, sha256=hash_file(run.folder / row.file)) for row in run.images()
    ]
    write_records(run.folder / "images.jsonl", rows)
    ahead.write()
    score(run, tiny)
    assert seen == [3, 3, 3]
    assert [row.sha256 for row in run.detections()] == [row.sha256 for row in run.images()]


def test_what_goes_wrong_ahead_is_said_by_the_score_stage(
    tiny: Models, run: Run, seen: list[int]
) -> None:
    file = run.folder / run.images()[1].file
    file.write_bytes(b"no image")
    rows = [
        dataclasses.replace(row, sha256=hash_file(run.folder / row.file)) for row in run.images()
    ]
    write_records(run.folder / "images.jsonl", rows)
    ahead = DetectionAhead(run, tiny, (), "cuda")
    for _ in range(3):
        ahead.detect_new()
    ahead.write()
    assert seen == [3] and not (run.folder / "detections.jsonl").exists()
    with pytest.raises(DataError, match="not a readable image"):
        score(run, tiny)


@pytest.mark.usefixtures("new_detector")
def test_a_scored_run_lets_no_detector_begin_until_one_is_needed(tiny: Models, run: Run) -> None:
    with detecting_ahead(run.folder, "cuda", ()):
        first = pid()
    score(run, tiny)
    detector._kept.end()
    with detecting_ahead(run.folder, "cuda", ()) as ahead:
        ahead.detect_new()
        assert detector._kept._process is None
    assert first


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_the_parent_works_while_its_child_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    read, write = os.pipe()
    calls: list[int] = []

    def meanwhile() -> None:
        calls.append(os.getpid())
        if len(calls) == 2:
            os.write(write, b"!")

    assert in_stage_process((), meanwhile, os.read, read, 1) == b"!"
    assert calls == [os.getpid()] * 2


@pytest.fixture
def picture() -> Path:
    Image.new("RGB", (32, 32)).save("picture.png")
    return Path("picture.png")


@pytest.mark.usefixtures("new_detector")
def test_a_detector_is_loaded_once_and_again_when_its_file_changes(
    tiny: Models, picture: Path
) -> None:
    shutil.copy(tiny.detector_file(), "own.safetensors")
    own = Path("own.safetensors")
    answer = detect(own, [picture, picture])
    first = pid()
    Path("below").mkdir()
    os.chdir("below")
    assert detect(
        Path("../own.safetensors").resolve(), [Path("../picture.png")]
    ) == dataclasses.replace(answer, detections=answer.detections[:1])
    assert pid() == first
    os.chdir("..")
    with safe_open(own, "pt") as file:
        metadata = file.metadata() | {"size": "32"}
    times = own.stat().st_atime_ns, own.stat().st_mtime_ns
    save_file(load_file(own), own, metadata=metadata)
    os.utime(own, ns=times)
    assert detect(own, [picture]).size == 32 and answer.size == 64


@pytest.mark.usefixtures("new_detector")
def test_a_detector_is_kept_in_a_block_until_an_error(
    tiny: Models, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "_keeping", 0)
    with detector_kept():
        with detector_kept():
            detect(tiny.detector_file(), [picture])
        process = detector._kept._process
        assert process is not None and process._folder and Path(process._folder).is_dir()
        detect(tiny.detector_file(), [picture])
        assert detector._kept._process is process
        with pytest.raises(SettingError, match="no such class"):
            detect(tiny.detector_file(), [picture], ["pear"])
        assert detector._kept._process is None
        assert not Path(process._folder).exists() and process._process.returncode is not None
        detect(tiny.detector_file(), [picture])
        assert detector._kept._process is not None
    assert detector._kept._process is None
    detect(tiny.detector_file(), [picture])
    assert detector._kept._process is None


@pytest.mark.forks(tensors=False)
def test_a_fork_and_many_words_leave_a_kept_detector_as_it_is(tiny: Models, picture: Path) -> None:
    def work(_: int) -> None:
        detect(tiny.detector_file(), [picture])
        detector._kept.end()

    detect(tiny.detector_file(), [picture])
    process = detector._kept._process
    assert process is not None and process._folder
    assert side_by_side(1, work) == [0]
    assert detector._kept._process is process and Path(process._folder).is_dir()
    with pytest.raises(SettingError, match="no such class"):  # more than fits into an argument
        detect(tiny.detector_file(), [], ["x" * 140_000])


def test_rows_of_other_words_are_not_mixed_with_new_ones(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[tuple[str, ...]] = [("apple", "dog")]

    def known(_: Path, files: list[Path], *more: object, **options: object) -> object:
        empty: list[tuple[()]] = [() for _ in files]
        return detector.DetectorAnswer(names=names[0], size=64, kind="known", detections=empty)

    monkeypatch.setattr(detections, "detect", known)
    rows = run.images()
    own = detections.Detections(run, tiny, ["apple"])
    own.of(rows[:4])
    names[0] = ("apple",)
    assert {row.names for row in own.of(rows)} == {("apple",)}
    own.write(rows)
    written = run.detections()
    mixed = [dataclasses.replace(written[0], names=("apple", "dog")), *written[1:]]
    write_records(run.folder / "detections.jsonl", mixed)
    assert detections.Detections(run, tiny, ["apple"]).missing(rows) == rows


def test_images_that_another_process_generated_just_before_are_those_that_are_scored(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(_: Path, files: list[Path], *more: object, **options: object) -> object:
        return detector.DetectorAnswer(
            names=("apple", "couch"), size=64, kind="known", detections=[() for _ in files]
        )

    lock = Run.lock

    @contextlib.contextmanager
    def late(own: Run) -> Iterator[None]:
        write_records(own.folder / "images.jsonl", own.images()[::2])
        with lock(own):
            yield

    monkeypatch.setattr(detections, "detect", known)
    monkeypatch.setattr(Run, "lock", late)
    score(run, tiny)
    assert [row.file for row in run.detections()] == [row.file for row in run.images()]
    assert len(run.images()) == 4
