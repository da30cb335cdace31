"""A batch of images: what its key covers, and when an earlier pass's files stand for it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from erase_sd.data.concept import Concept
from erase_sd.data.pair import CaptionPair
from erase_sd.data.prompts import PromptFile
from erase_sd.errors import DataError
from erase_sd.files import digest, write_bytes
from erase_sd.generation.batch import ImageBatch, generate_pngs, hashes_on_disk
from erase_sd.generation.cache import image_cache
from erase_sd.generation.cost import MANY_IMAGES, announce, check_image_space, cost_line
from erase_sd.generation.plan import MAX_STEM, PlannedImage, batches_of, plan, reference_texts
from erase_sd.run import Run
from erase_sd.run.records import ImageRecord

SHAPE = {
    "steps": 10, "guidance": 3.5, "size": 64, "sampler": "dpm++", "dtype": "fp32",
    "scheduler": "DPMSolverMultistepScheduler", "model": "fingerprint", "device": "cpu", "batch": 25,
}  # fmt: skip
PAIR = CaptionPair(caption="an apple", image=None, mentions=(), set="retain", split="held-out")
IMAGE = PlannedImage(file="apple-0000.png", prompt_file="apple", pair=PAIR, seed=1000)
RUN = Run(Path("runs/apple"))


def batch(image: PlannedImage = IMAGE, text: str = "an apple", **changes: Any) -> ImageBatch:
    fields = {"variant": "erased", "weights": "erased weights", "number": 0, "shape": SHAPE}
    return ImageBatch(texts={image: text}, **(fields | changes))


@pytest.mark.parametrize(
    "other",
    [
        batch(text="a red apple"),
        batch(replace(IMAGE, seed=1001)),
        batch(weights="other weights"),
        batch(variant="original"),
        *(batch(shape=SHAPE | {name: "another"}) for name in SHAPE),
    ],
)
def test_whatever_shapes_an_image_is_in_the_key_of_its_batch(other: ImageBatch) -> None:
    assert other.key != batch().key
    assert batch(number=3).key == batch().key


@pytest.fixture
def earlier() -> dict[str, ImageRecord]:
    """The record of the batch's image, which lies in the run folder."""
    write_bytes(RUN.folder / batch().file(IMAGE), b"png")
    [record] = batch().records([digest(b"png")])
    return {record.file: record}


def test_intact_images_of_the_same_batch_are_not_generated_again(
    earlier: dict[str, ImageRecord],
) -> None:
    assert hashes_on_disk(batch(), RUN, earlier) == [digest(b"png")]


def test_images_of_another_batch_are_generated_again(earlier: dict[str, ImageRecord]) -> None:
    assert hashes_on_disk(batch(weights="other weights"), RUN, earlier) is None
    assert hashes_on_disk(batch(text="a red apple"), RUN, earlier) is None


@pytest.mark.parametrize("change", ["damaged", "missing", "unrecorded"])
def test_images_that_are_not_those_of_the_record_are_generated_again(
    earlier: dict[str, ImageRecord], change: str
) -> None:
    file = RUN.folder / batch().file(IMAGE)
    if change == "damaged":
        write_bytes(file, b"gnp")
    elif change == "missing":
        file.unlink()
    else:
        earlier.clear()
    assert hashes_on_disk(batch(), RUN, earlier) is None


def test_images_that_cannot_be_cached_are_there_all_the_same_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("erase_sd.generation.batch.store_batch", Mock(side_effect=full))
    monkeypatch.setattr(
        "erase_sd.generation.batch.generate_batch", lambda *_: [Image.new("RGB", (8, 8))]
    )
    pipe: Any = None
    for number in range(2):
        assert len(generate_pngs(batch(variant="original", number=number), pipe)()) == 1
    line = f"{image_cache()}: the original's images are not cached (No space left on device)"
    assert caplog.messages == [line]


def test_no_batch_mixes_prompt_files() -> None:
    files = ["apple"] * 3 + ["retain"] * 2
    images = [replace(IMAGE, prompt_file=file, seed=seed) for seed, file in enumerate(files)]
    seeds = [[image.seed for image in batch] for batch in batches_of(images, 2)]
    assert seeds == [[0, 1], [2], [3, 4]]


def test_image_k_of_prompt_p_has_its_own_seed_and_each_file_begins_again() -> None:
    files = [
        PromptFile(Path("apple.txt"), "", ("an apple", "two apples")),
        PromptFile(Path("retain.txt"), "", ("a dog",)),
    ]
    images = plan(files, [Concept("apple")], images_per_prompt=2, seed=1000)
    assert [(image.file, image.prompt, image.seed) for image in images] == [
        ("apple-0000.png", "an apple", 1000), ("apple-0001.png", "an apple", 1001),
        ("apple-0002.png", "two apples", 1002), ("apple-0003.png", "two apples", 1003),
        ("retain-0000.png", "a dog", 1000), ("retain-0001.png", "a dog", 1001),
    ]  # fmt: skip
    with pytest.raises(DataError, match="two files have the same name"):
        plan([files[0], replace(files[0], path=Path("other/apple.txt"))], [], 1, 0)


def test_more_images_and_longer_names_than_a_run_can_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("erase_sd.generation.plan.MAX_IMAGES", 4)
    name = "\u00e9" * (MAX_STEM // 2) + ".txt"
    file = PromptFile(Path(name), "", ("an apple", "two apples"))
    assert len(plan([file], [], images_per_prompt=2, seed=0)) == 4
    with pytest.raises(DataError, match="6 images of each variant, at most 4"):
        plan([file], [], images_per_prompt=3, seed=0)
    with pytest.raises(DataError, match="needs UTF-8 of at most 200 bytes"):
        plan([replace(file, path=file.path.with_stem(file.stem + "x"))], [], 1, 0)


def test_a_reference_is_generated_without_any_concept_where_a_concept_is_to_be_seen() -> None:
    concepts = [Concept("apple"), Concept("dog")]
    texts = ("a cat beside an apple", "a cat beside a dog", "a red fruit")
    stems = ("apple", "apple.name-free", "apple.other-sense")
    files = [PromptFile(Path(f"{stem}.txt"), "", texts) for stem in stems]
    references = reference_texts(plan(files, concepts, 1, 0), concepts)
    assert {image.file: text for image, text in references.items()} == {
        f"{stem}-000{number}.png": "a cat" for stem in stems[:2] for number in range(2)
    }


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""), (119, ", in about 119 s"), (120, ", in about 2 min"), (7199, ", in about 120 min"),
        (7200, ", in about 2 h"), (172_799, ", in about 48 h"), (172_800, ", in about 2 d"),
    ],
)  # fmt: skip
def test_the_cost_of_many_images_is_said_in_units_of_which_there_are_two(
    seconds: float | None, words: str
) -> None:
    assert cost_line(2000, seconds) == f"2,000 images are to be generated{words}"


def test_many_images_are_announced_with_the_time_of_all_and_their_bytes_are_checked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("erase_sd.generation.cost.check_space", lambda *own: checked.append(own))
    monkeypatch.setattr("erase_sd.models.sampling.seconds_per_image", lambda *own: own[1] * own[2])
    check_image_space(Path("runs/apple"), 3, 64)
    assert checked == [(Path("runs/apple"), 2 * 64 * 64 * 3)]
    approved: list[tuple[int, float | None]] = []
    pipe: Any = None
    with caplog.at_level("INFO"):
        for count, more in ((MANY_IMAGES - 1, False), (MANY_IMAGES, False), (MANY_IMAGES, True)):
            announce(
                Path("a"), pipe, count, 10, 3.0, lambda *own: approved.append(own), at_least=more
            )
    assert approved == [(MANY_IMAGES, 30.0 * MANY_IMAGES)] * 2
    line = "2,000 images are to be generated, in about 17 h"
    assert caplog.messages == [f"a: {line}", f"a: at least {line}"]
