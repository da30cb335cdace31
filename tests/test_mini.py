"""The miniature world: its scenes, captions, tokenizer; and one real erasure with it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import ImageChops

import erase_sd
from erase_sd.data.coco import named_classes
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read
from erase_sd.data.kinds import KINDS, read_name
from erase_sd.data.prompts import read_prompts
from erase_sd.mini import WEIGHTS, dataset
from erase_sd.mini.captions import (
    NAME_FREE,
    SYNONYMS,
    captions,
    describe,
    held_out,
    held_out_caption,
)
from erase_sd.mini.dataset import DATASET_SEED, IMAGES
from erase_sd.mini.scenes import CLASS_OF, CLASSES, SIZE, render, sample
from erase_sd.mini.training.data import TRAIN_SCENES, TRAIN_SEED
from erase_sd.scoring.rates import Row

PROMPTS = Path(__file__).parents[1] / "prompts"
FILES = sorted(PROMPTS.glob("*.txt"))
OF_A_KIND = [path for path in FILES if read_name(path.stem)[1]]
PLAIN = [path for path in FILES if path not in OF_A_KIND]
LOOK_ALIKES = {"apple": "orange", "bicycle": "motorcycle", "chair": "couch", "elephant": "cow"}


def test_the_same_seed_draws_the_same_scene_and_another_seed_another() -> None:
    first, again, other = (render(sample(seed)) for seed in (3, 3, 4))
    assert first[1] == again[1]
    assert ImageChops.difference(first[0], again[0]).getbbox() is None
    assert ImageChops.difference(first[0], other[0]).getbbox() is not None


def test_boxes_are_of_the_scenes_classes_and_inside_the_image() -> None:
    for seed in range(100):
        scene = sample(seed)
        _, boxes = render(scene)
        assert sorted(box[0] for box in boxes) == sorted(thing.name for thing in scene.things)
        for _, x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE


def test_a_box_is_where_the_thing_changes_the_image() -> None:
    scene = sample(1, ("apple",), "kitchen")
    with_it, [(_, x0, y0, x1, y1)] = render(scene)
    empty = render(type(scene)(scene.seed, scene.place, ()))[0]
    changed = ImageChops.difference(with_it, empty).getbbox()
    assert changed is not None
    for drawn, told in zip(changed, (x0, y0, x1, y1), strict=True):
        assert abs(drawn - told) <= 1.5


def test_the_world_holds_the_classes_it_promises() -> None:
    assert len(CLASSES) >= 16
    for name in (
        "person",
        "apple",
        "orange",
        "bicycle",
        "motorcycle",
        "chair",
        "couch",
        "elephant",
        "cow",
    ):
        assert name in CLASSES
    counts = {len(sample(seed).things) for seed in range(200)}
    assert counts == {0, 1, 2, 3}


def test_a_direct_caption_names_every_thing_of_its_scene() -> None:
    for seed in range(300):
        scene = sample(seed)
        text = describe(scene, random.Random(seed), "direct").text
        assert set(named_classes(text, CLASSES)) == {thing.name for thing in scene.things}, text


def test_name_free_captions_name_nothing_of_what_they_describe() -> None:
    for seed in range(300):
        scene = sample(seed, (random.Random(seed).choice(list(CLASS_OF)),))
        caption = describe(scene, random.Random(seed), "name-free")
        if caption.wording == "name-free":
            assert named_classes(caption.text, CLASSES) == [], caption.text


def test_no_training_caption_is_held_out_and_no_held_out_one_is_trained() -> None:
    for seed in range(200):
        assert not any(held_out(text) for text in captions(sample(seed)))
        told = held_out_caption(sample(seed))
        assert told is None or held_out(told)


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_prompt_files_hold_50_different_held_out_captions(path: Path) -> None:
    prompts = read_prompts(path)
    assert len(prompts) == len(set(prompts)) == 50
    assert all(held_out(prompt) for prompt in prompts)
    targets = set(LOOK_ALIKES)
    for prompt in prompts:
        named = set(named_classes(prompt, CLASSES))
        assert 1 <= len(named) <= 2
        assert path.stem in named if path.stem in targets else not named & targets


def test_each_concept_has_a_file_of_each_kind_that_the_world_has() -> None:
    assert {read_name(path.stem) for path in OF_A_KIND} == {
        (concept, kind)
        for concept in LOOK_ALIKES
        for kind in KINDS
        if kind != "other-sense" or concept == "apple"
    }


@pytest.mark.parametrize("path", OF_A_KIND, ids=lambda path: path.stem)
def test_kind_files_hold_20_different_held_out_captions_of_their_kind(path: Path) -> None:
    concept, kind = read_name(path.stem)
    prompts = read_prompts(path)
    assert len(prompts) == len(set(prompts)) == 20
    assert all(held_out(prompt) for prompt in prompts)
    named = [set(named_classes(prompt, CLASSES)) for prompt in prompts]
    if kind in ("synonym", "name-free"):
        words = {"synonym": SYNONYMS, "name-free": NAME_FREE}[kind][concept]
        meant = [word.format(colour) for word in words for colour in ("red", "green")]
        assert all(any(word in prompt for word in meant) for prompt in prompts)
        assert not any(Concept(concept).in_text(prompt) for prompt in prompts)
        assert all(len(of - {concept}) <= 1 for of in named)
    else:
        shown = LOOK_ALIKES[concept] if kind == "look-alike" else "laptop"
        assert all(shown in of and len(of) <= 2 and not of & set(LOOK_ALIKES) for of in named)
        assert all(("apple laptop" in prompt) == (kind == "other-sense") for prompt in prompts)


def test_no_prompt_stands_in_two_files() -> None:
    prompts = [prompt for path in FILES for prompt in read_prompts(path)]
    twice = {prompt for prompt in prompts if prompts.count(prompt) > 1}
    assert not twice & {prompt for path in OF_A_KIND for prompt in read_prompts(path)}


def test_no_prompt_is_among_the_captions_of_the_dataset() -> None:
    seen = {
        c.removesuffix(" .").lower() for item in read(dataset(IMAGES)).items for c in item.captions
    }
    prompts = {prompt for path in FILES for prompt in read_prompts(path)}
    assert len(PLAIN) == 5 and len(OF_A_KIND) == 13 and len(seen) > 5_000
    assert not prompts & seen


@pytest.mark.slow
def test_no_prompt_is_among_the_captions_that_trained_the_world() -> None:
    prompts = {prompt for path in FILES for prompt in read_prompts(path)}
    for seed in range(TRAIN_SEED, TRAIN_SEED + TRAIN_SCENES):
        assert prompts.isdisjoint(captions(sample(seed)))


def test_the_parts_of_the_world_share_no_scene() -> None:
    assert DATASET_SEED >= TRAIN_SEED + TRAIN_SCENES


def test_the_dataset_is_written_whole_and_again_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset(20)
    before = {p.name: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    monkeypatch.setenv("ERASE_SD_CACHE", "other")
    after = {p.name: p.read_bytes() for p in dataset(20).rglob("*") if p.is_file()}
    assert before == after and len(before) == 22


def test_the_tokenizer_takes_any_text_and_ends_with_its_largest_id() -> None:
    from transformers import CLIPTextConfig, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "sd" / "tokenizer")
    config = CLIPTextConfig.from_pretrained(WEIGHTS / "sd" / "text_encoder")
    assert tokenizer.eos_token_id == config.eos_token_id == len(tokenizer) - 1
    for text in ("an apple", "Zürich 北京 🍎", "", "x" * 20):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1
    assert len(tokenizer("an apple in a kitchen")["input_ids"]) == 7


def test_the_committed_weights_are_safetensors_of_at_most_50_mb() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in files) <= 50_000_000


def test_an_apple_is_erased_from_the_miniature_world_and_the_rest_stays() -> None:
    """One real erasure, start to end, on the committed weights."""
    for name, step in (("apple", 2), ("retain", 1)):
        lines = read_prompts(PROMPTS / f"{name}.txt")[::step]
        Path(f"{name}.txt").write_text("\n".join(lines) + "\n")
    folder = erase_sd.unlearn("apple")
    erase_sd.generate("apple.txt", run=folder)
    rows = {(row.group, row.arm): row for row in erase_sd.score(folder).rows}

    def rate(group: str, arm: str) -> float:
        row: Row = rows[group, arm]  # type: ignore[index]
        return row.rate

    assert rate("target", "original") >= 0.8
    assert rate("target", "erased") <= 0.08
    for group in ("retained_same", "retained_other"):
        assert rate(group, "erased") >= rate(group, "original") - 0.08
        assert rate(group, "original") >= 0.88
    manifest = json.loads((folder / "run.json").read_text())
    assert {stage["status"] for stage in manifest["stages"].values()} == {"done"}
