"""Caption pairs without a dataset: the grammar's captions, and images of them by the model itself."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import erase_sd
from erase_sd.checked import hash_folder
from erase_sd.data import grammar
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.grammar import FORGET_SCENES, RETAIN_SCENES, grammar_captions
from erase_sd.data.prompts import read_prompt_file
from erase_sd.errors import DataError
from erase_sd.models.presets import Models
from erase_sd.unlearning import synthetic
from erase_sd.unlearning.pairs import dataset_of

CONCEPTS = (Concept("apple", ("pippin",), ("apple laptop",)),)
PROMPTS = Path(__file__).parents[1] / "prompts"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "FORGET_SCENES", 12)
    monkeypatch.setattr(grammar, "RETAIN_SCENES", 16)


def test_every_caption_of_a_forget_scene_mentions_the_concept_and_no_other_does() -> None:
    scenes = grammar_captions(CONCEPTS)
    for number, texts in enumerate(scenes):
        assert {CONCEPTS[0].in_text(text) for text in texts} == {number < FORGET_SCENES}
    assert len(scenes) == FORGET_SCENES + RETAIN_SCENES
    assert all(len(texts) == 5 for texts in scenes)


def test_synonyms_are_used_and_kept_senses_are_retained() -> None:
    scenes = grammar_captions(CONCEPTS)
    forget, retain = scenes[:FORGET_SCENES], scenes[FORGET_SCENES:]
    assert any("pippin" in texts[0] for texts in forget)
    assert sum("apple laptop" in texts[0] for texts in retain) >= RETAIN_SCENES // 8


def test_retain_scenes_mention_none_of_several_concepts() -> None:
    both = (Concept("chair"), Concept("person", ("man", "woman", "boy", "girl")))
    scenes = grammar_captions(both)
    assert len(scenes) == 2 * FORGET_SCENES + RETAIN_SCENES
    retain = [text for texts in scenes[2 * FORGET_SCENES :] for text in texts]
    assert not any(concept.in_text(text) for concept in both for text in retain)


def test_no_caption_is_one_of_the_prompts() -> None:
    captions = {text.lower() for texts in grammar_captions((Concept("apple"),)) for text in texts}
    prompts = {
        text.lower()
        for name in ("apple", "retain")
        for text in read_prompt_file(PROMPTS / f"{name}.txt").texts
    }
    assert prompts and not captions & prompts


def test_captions_keep_to_the_context_length_or_are_refused() -> None:
    short = grammar_captions(CONCEPTS, fits=lambda text: len(text) < 40)
    assert max(len(text) for texts in short for text in texts) < 40
    with pytest.raises(DataError, match="every caption with pippin exceeds the model's context"):
        grammar_captions(CONCEPTS, fits=lambda text: "pippin" not in text)


def test_large_images_are_generated_in_small_batches_and_smaller_ones_if_memory_runs_out(
    tiny: Models, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def generate(pipe: Any, prompts: list[str], *_: Any) -> list[Image.Image]:
        sizes.append(len(prompts))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError
        return [Image.new("RGB", (8, 8))] * len(prompts)

    monkeypatch.setattr(synthetic, "generate_batch", generate)
    monkeypatch.setattr(synthetic, "default_batch", lambda _: 8)
    assert len(dataset_of(dataclasses.replace(tiny, data="synth"), CONCEPTS).items) == 28
    assert sizes == [8, 8, 4, 4, 4, 4, 4]


def test_images_are_generated_once_and_read_like_any_dataset(
    tiny: Models, few: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "erase_sd")
    models = dataclasses.replace(tiny, data="synth", steps=2)
    data = dataset_of(models, CONCEPTS)
    assert "28 images" in caplog.text
    assert len(data.items) == 28
    assert {len(item.captions) for item in data.items} == {5}
    caplog.clear()
    assert dataset_of(models, CONCEPTS).folder == data.folder
    assert caplog.text == ""
    assert dataset_of(models, (Concept("chair"),)).folder != data.folder
    assert read_flickr30k(data.folder).digest == data.digest


def test_any_concept_can_be_unlearned_without_a_dataset(tiny: Models, few: None) -> None:
    folder = erase_sd.unlearn(
        "lighthouse", data="synth", model=tiny.model, clip=tiny.clips, steps=2,
        validate_every=2, retain_floor=0.0, max_residual=1e9,
    )  # fmt: skip
    assert (folder / "erased" / "erase.json").is_file()


@pytest.mark.parametrize("change", [{"steps": 3}, {"sampler": "ddim"}, {"guidance": 2.0}])
def test_pairs_of_another_solver_are_generated_anew(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(synthetic, "cached_folder", lambda folder, write: folder)
    pairs = synthetic.synthetic_pairs(tiny, CONCEPTS)
    assert synthetic.synthetic_pairs(tiny, CONCEPTS) == pairs
    assert synthetic.synthetic_pairs(dataclasses.replace(tiny, **change), CONCEPTS) != pairs


def test_pairs_that_an_earlier_version_has_generated_are_used(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint was of all files in the model's folder."""
    shutil.copytree(tiny.folder, tmp_path / "sd")
    (tmp_path / "sd" / "other.safetensors").write_text("{}")
    models = dataclasses.replace(tiny, model=tmp_path / "sd")
    monkeypatch.setattr(synthetic, "cached_folder", lambda folder, write: folder)
    with monkeypatch.context() as patch:
        of_all = hash_folder(models.folder, "*.safetensors", "*.json")
        patch.setattr(Models, "fingerprint", lambda _: of_all)
        before = synthetic.synthetic_pairs(models, CONCEPTS)
    now = synthetic.synthetic_pairs(models, CONCEPTS)
    before.mkdir(parents=True)
    assert synthetic.synthetic_pairs(models, CONCEPTS) == before != now
    now.mkdir()
    assert synthetic.synthetic_pairs(models, CONCEPTS) == now
