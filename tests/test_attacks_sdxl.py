"""Attacks on a pipeline with two text encoders: both are attacked, and their words are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_attacks import SMALL
from test_models import sdxl as sdxl

from erase_sd.attacks.registry import ATTACKS, build_attacks
from erase_sd.attacks.target import Target, attacked_captions, copy_of, cycled
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.split import split_by_concept
from erase_sd.models.denoiser import open_denoiser
from erase_sd.models.pipeline import embed, encoders_of, open_pipeline
from erase_sd.models.presets import Models


@pytest.fixture
def victim(sdxl: Models) -> Target:
    """Two encoders, the erased ones being the original's with larger weights."""
    concept = Concept("apple")
    assert isinstance(sdxl.data, Path)
    data = read_flickr30k(sdxl.data)
    sets = split_by_concept(data.items, [concept])
    pipe = open_pipeline(sdxl.folder, "fp32")
    pipe.unet.requires_grad_(False)
    original = encoders_of(pipe)
    erased = copy_of(original)
    with torch.no_grad():
        for encoder in (*original.values(), *erased.values()):
            encoder.requires_grad_(False)
        for encoder in erased.values():
            for weight in encoder.parameters():
                weight.mul_(1.5)
    captions = attacked_captions(pipe, data, sets, concept, "held-out")
    return Target(
        pipe=pipe, original=original, erased=erased, concept=concept,
        detector=sdxl.detector_file(), detector_class="apple", captions=cycled(captions, 2),
        training=attacked_captions(pipe, data, sets, concept, "train"), seed=7, steps=1, guidance=2.0,
    )  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_works_on_two_encoders(
    victim: Target, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "probabilities", lambda _, files: [0.5] * len(files))
    own = {key: value for key, value in SMALL.items() if key.startswith(f"{name}.")}
    for probe in build_attacks((name,), own)[name].run(victim):
        assert {*probe.embeds} == {"prompt_embeds", "pooled_prompt_embeds"}
        empty = probe.empty or victim.empty(victim.erased)
        assert len(list(victim.images(probe.embeds, empty, victim.seeds))) == victim.n


def test_a_denoiser_pads_the_tokens_of_each_encoder_as_the_pipeline_does(sdxl: Models) -> None:
    denoiser = open_denoiser(sdxl.folder, "fp32")
    texts = ["an apple", "a dog on a table"]
    tokenizer = denoiser.pipe.tokenizer
    assert tokenizer.pad_token_id != denoiser.pipe.tokenizer_2.pad_token_id
    ids = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    encoded, expected = denoiser.encode(ids), embed(denoiser.pipe, texts)
    assert encoded.keys() == expected.keys()
    assert all(torch.equal(encoded[name], expected[name]) for name in expected)
