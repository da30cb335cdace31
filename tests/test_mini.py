"""The miniature world: its scenes, captions and tokenizer, and one real erasure with it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from PIL import ImageChops

import erase_sd
from erase_sd.data.coco import LOOK_ALIKES, named_classes
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.grammar import is_held_out
from erase_sd.data.kinds import CONCEPT_KINDS, parse_prompt_file_name
from erase_sd.data.pair import PROMPT_KINDS
from erase_sd.data.prompts import read_prompt_file
from erase_sd.mini import WEIGHTS, dataset
from erase_sd.mini.captions import (
    NAME_FREE_WORDINGS,
    SYNONYM_WORDINGS,
    describe_scene,
    held_out_caption,
    training_captions,
)
from erase_sd.mini.dataset import DATASET_SEED, IMAGES
from erase_sd.mini.scenes import CLASS_OF, CLASSES, SIZE, render_scene, sample
from erase_sd.mini.training.data import TRAIN_SCENES, TRAIN_SEED
from erase_sd.run import Run

PROMPTS = Path(__file__).parents[1] / "prompts"
FILES = sorted(PROMPTS.glob("*.txt"))
PLAIN = [path for path in FILES if parse_prompt_file_name(path.stem)[1] == "plain"]
OF_A_KIND = [path for path in FILES if path not in PLAIN]
LOOK_ALIKE_OF = {a: b for a, b in LOOK_ALIKES if a in CLASSES and b in CLASSES}


def texts(path: Path) -> list[str]:
    return list(read_prompt_file(path).texts)


def test_a_seed_determines_the_scene() -> None:
    first, again, other = (render_scene(sample(seed)) for seed in (3, 3, 4))
    assert first[1] == again[1]
    assert ImageChops.difference(first[0], again[0]).getbbox() is None
    assert ImageChops.difference(first[0], other[0]).getbbox() is not None


def test_boxes_have_the_scenes_classes_and_lie_inside_the_image() -> None:
    for seed in range(100):
        scene = sample(seed)
        _, boxes = render_scene(scene)
        assert sorted(box[0] for box in boxes) == sorted(thing.name for thing in scene.things)
        for _, x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE


def test_a_box_bounds_the_pixels_that_its_thing_changes() -> None:
    scene = sample(1, ("apple",), "kitchen")
    shown, [(_, x0, y0, x1, y1)] = render_scene(scene)
    empty = render_scene(type(scene)(scene.seed, scene.place, ()))[0]
    changed = ImageChops.difference(shown, empty).getbbox()
    assert changed is not None
    for pixel, edge in zip(changed, (x0, y0, x1, y1), strict=True):
        assert abs(pixel - edge) <= 1.5


def test_scenes_have_sixteen_classes_and_up_to_three_things() -> None:
    assert len(CLASSES) == 16
    assert {name for pair in LOOK_ALIKE_OF.items() for name in pair} | {"person"} <= set(CLASSES)
    assert {len(sample(seed).things) for seed in range(200)} == {0, 1, 2, 3}


def test_a_direct_caption_names_every_thing_of_its_scene() -> None:
    for seed in range(300):
        scene = sample(seed)
        text = describe_scene(scene, random.Random(seed), "direct").text
        assert set(named_classes(text, CLASSES)) == {thing.name for thing in scene.things}, text


def test_name_free_captions_name_no_class() -> None:
    for seed in range(300):
        scene = sample(seed, (random.Random(seed).choice(list(CLASS_OF)),))
        caption = describe_scene(scene, random.Random(seed), "name-free")
        if caption.wording == "name-free":
            assert named_classes(caption.text, CLASSES) == [], caption.text


def test_training_captions_are_never_held_out() -> None:
    for seed in range(200):
        assert not any(is_held_out(text) for text in training_captions(sample(seed)))
        caption = held_out_caption(sample(seed))
        assert caption is None or is_held_out(caption)


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_prompt_files_hold_50_different_held_out_captions(path: Path) -> None:
    prompts = texts(path)
    assert len(prompts) == len(set(prompts)) == 50
    assert all(is_held_out(prompt) for prompt in prompts)
    targets = set(LOOK_ALIKE_OF)
    for prompt in prompts:
        named = set(named_classes(prompt, CLASSES))
        assert 1 <= len(named) <= 2
        assert path.stem in named if path.stem in targets else not named & targets


def test_each_concept_has_a_prompt_file_of_each_kind() -> None:
    assert {parse_prompt_file_name(path.stem) for path in OF_A_KIND} == {
        (concept, kind)
        for concept in LOOK_ALIKE_OF
        for kind in PROMPT_KINDS
        if kind != "plain" and (kind != "other-sense" or concept == "apple")
    }


@pytest.mark.parametrize("path", OF_A_KIND, ids=lambda path: path.stem)
def test_kind_files_hold_20_different_held_out_captions_of_their_kind(path: Path) -> None:
    concept, kind = parse_prompt_file_name(path.stem)
    prompts = texts(path)
    assert len(prompts) == len(set(prompts)) == 20
    assert all(is_held_out(prompt) for prompt in prompts)
    named = [set(named_classes(prompt, CLASSES)) for prompt in prompts]
    if kind in CONCEPT_KINDS:
        wordings = (SYNONYM_WORDINGS if kind == "synonym" else NAME_FREE_WORDINGS)[concept]
        phrases = [words.format(colour) for words in wordings for colour in ("red", "green")]
        assert all(any(phrase in prompt for phrase in phrases) for prompt in prompts)
        assert not any(Concept(concept).in_text(prompt) for prompt in prompts)
        assert all(len(classes - {concept}) <= 1 for classes in named)
    else:
        shown = LOOK_ALIKE_OF[concept] if kind == "look-alike" else "laptop"
        assert all(shown in classes and len(classes) <= 2 for classes in named)
        assert not any(classes & set(LOOK_ALIKE_OF) for classes in named)
        assert all(("apple laptop" in prompt) == (kind == "other-sense") for prompt in prompts)


def test_no_prompt_of_a_kind_is_in_two_files() -> None:
    prompts = [prompt for path in FILES for prompt in texts(path)]
    repeated = {prompt for prompt in prompts if prompts.count(prompt) > 1}
    assert not repeated & {prompt for path in OF_A_KIND for prompt in texts(path)}


def test_no_prompt_is_among_the_captions_of_the_dataset(shared_cache: None) -> None:
    items = read_flickr30k(dataset(IMAGES)).items
    captions = {c.removesuffix(" .").lower() for item in items for c in item.captions}
    prompts = {prompt for path in FILES for prompt in texts(path)}
    assert len(PLAIN) == 5 and len(OF_A_KIND) == 13 and len(captions) > 5_000
    assert not prompts & captions


@pytest.mark.slow
def test_no_prompt_is_among_the_captions_that_trained_the_world() -> None:
    prompts = {prompt for path in FILES for prompt in texts(path)}
    for seed in range(TRAIN_SEED, TRAIN_SEED + TRAIN_SCENES):
        assert prompts.isdisjoint(training_captions(sample(seed)))


def test_training_and_dataset_share_no_scene() -> None:
    assert DATASET_SEED >= TRAIN_SEED + TRAIN_SCENES


def test_the_dataset_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset(20)
    before = {p.name: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    monkeypatch.setenv("ERASE_SD_CACHE", "other")
    after = {p.name: p.read_bytes() for p in dataset(20).rglob("*") if p.is_file()}
    assert before == after and len(before) == 23  # images, captions, manifest


def test_scenes_and_captions_are_those_that_the_weights_were_trained_with() -> None:
    content = hashlib.sha256()
    for seed in range(TRAIN_SEED, TRAIN_SEED + 200):
        image, boxes = render_scene(sample(seed))
        content.update(image.tobytes() + repr([boxes, training_captions(sample(seed))]).encode())
    assert content.hexdigest()[:16] == "c7fc70b05655f923"


def test_the_tokenizer_encodes_any_text_and_its_end_token_has_the_largest_id() -> None:
    from transformers import CLIPTextConfig, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "sd" / "tokenizer")
    config = CLIPTextConfig.from_pretrained(WEIGHTS / "sd" / "text_encoder")
    assert tokenizer.eos_token_id == config.eos_token_id == len(tokenizer) - 1
    for text in ("an apple", "Zürich 北京 🍎", "", "x" * 20):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1
    assert len(tokenizer("an apple in a kitchen")["input_ids"]) == 7


def test_the_packaged_weights_are_safetensors_of_at_most_50_mb() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in files) <= 50_000_000


def test_erasing_apples_from_the_miniature_world_keeps_everything_else(shared_cache: None) -> None:
    """One real erasure, from unlearning to scores, with the packaged weights."""
    for name in ("apple", "retain"):
        Path(f"{name}.txt").write_text("\n".join(texts(PROMPTS / f"{name}.txt")[::2]) + "\n")
    folder = erase_sd.unlearn("apple")
    erase_sd.generate("apple.txt", run=folder)
    rates = {rate.group: rate for rate in erase_sd.score(folder).rates}
    assert rates["target"].original.value >= 0.8
    assert rates["target"].erased.value <= 0.08
    for group in ("retained_same", "retained_other"):
        assert rates[group].change.difference >= -0.08  # type: ignore[index]
        assert rates[group].original.value >= 0.88  # type: ignore[index]
    stages = Run(folder).record.stages
    assert stages.unlearn and stages.generate and stages.score
    assert {stages.unlearn.status, stages.generate.status, stages.score.status} == {"done"}
