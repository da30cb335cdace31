"""The benchmark's rivals run, and its table says what was measured."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from erase_sd.bench import compare
from erase_sd.bench.__main__ import table
from erase_sd.bench.compare import SideBySide
from erase_sd.bench.growth import CAPTIONS, CONCEPTS, WORDS, Timing, curves, word_pairs
from erase_sd.bench.naive_cliperase import naive_seconds_per_step
from erase_sd.bench.stock_loop import stock_images
from erase_sd.data.shards import write_shards
from erase_sd.models.presets import Models


def test_the_stock_loop_gives_an_image_per_prompt(tiny: Models) -> None:
    images, seconds = stock_images(tiny.folder, ["an apple", "a dog"], [1, 2], 2, 3.5)
    assert [image.size for image in images] == [(32, 32)] * 2
    assert all(isinstance(image, Image.Image) for image in images) and seconds > 0


def test_as_many_images_are_timed_as_asked_for(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def timed(_: object, prompts: list[str], *__: object) -> tuple[list[Image.Image], float]:
        counts.append(len(prompts))
        return [Image.new("RGB", (8, 8)) for _ in prompts], 1.0

    monkeypatch.setattr(compare, "resolve", lambda: tiny)
    monkeypatch.setattr(compare, "stock_images", timed)
    monkeypatch.setattr(compare, "generate_batch", lambda *words: timed(*words)[0])
    monkeypatch.setattr(compare, "_detected", lambda *_: 1.0)
    assert compare.compare_generation(1, 120).rival == 1 / 120  # the file has 50 prompts
    assert set(counts) == {120}


def test_the_naive_loop_trains_on_caption_pairs(tiny: Models) -> None:
    files = sorted((tiny.pairs()).rglob("*.jpg"))
    pairs = [(file, "a dog in a park") for file in files[:20]]
    assert naive_seconds_per_step(tiny.clip_folder(0), pairs[:8], pairs, 1) > 0


def test_the_table_gives_ratios_where_there_is_a_rival() -> None:
    rows = [
        SideBySide(
            measure="an image",
            runs=3,
            ours=0.1,
            rival=1.0,
            ours_detected=0.961,
            rival_detected=0.96,
        ),
        SideBySide(measure="erase-sd run", runs=1, ours=50.0, rival=None),
    ]
    assert table(rows).splitlines()[2:] == [
        "| an image | 0.1 | 1 | 10 | 96.1 | 96.0 |",
        "| erase-sd run | 50 |  |  |  |  |",
    ]


def test_each_word_of_the_made_up_shard_has_as_many_captions(tmp_path: Path) -> None:
    write_shards(tmp_path, word_pairs(), len(WORDS) * CAPTIONS)
    with tarfile.open(tmp_path / "00000.tar") as tar:
        texts = [m for m in tar.getmembers() if m.name.endswith("txt")]
        first = tar.extractfile(texts[0])
        assert first is not None and first.read().startswith(b"an apple ")
    assert len(texts) == CAPTIONS * len(WORDS) and len(set(WORDS)) == len(WORDS)
    places = {WORDS.index(word) for word in ("table", "window")}  # are in captions of other words
    assert min(places) >= max(CONCEPTS)


def test_costs_of_images_and_of_concepts_become_two_curves() -> None:
    costs = [
        Timing(of=of, count=count, seconds=0.1 * count)
        for of in ("images", "concepts")
        for count in (1, 10)
    ]
    assert curves(costs).startswith(b"\x89PNG")
