"""EMMN: its two phases worked out by hand, and its noise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from method_task import LinearStudent, X, Y, apple_task, empty_batch, flat_images, mini_clip

from erase_sd.methods.emmn import EMMN
from erase_sd.models.presets import Models


def test_emmn_impairs_with_noise_and_then_repairs_without_it() -> None:
    # Noise pair: caption X, image Y; retain pairs X-X and Y-Y. Images Y X Y, captions X X Y.
    method = dataclasses.replace(
        EMMN(impair_weight=2.0, retain_weight=3.0, impair_share=0.5),
        ids=torch.tensor([[0]]),
        pixels=flat_images(Y),
    )
    student = LinearStudent([X])
    impairing = method.loss(student, empty_batch(done=0.49))
    e = math.e
    noise = (math.log(2 + e) - 0 + math.log(2 + e) - 0) / 2  # row 0 0 1, column 0 1 0
    first = (math.log(2 * e + 1) - 1 + math.log(2 + e) - 1) / 2  # row 1 1 0, column 0 1 0
    second = (math.log(2 + e) - 1 + math.log(2 * e + 1) - 1) / 2  # row 0 0 1, column 1 0 1
    assert {name: float(term.detach()) for name, term in impairing.items()} == pytest.approx(
        {"impair": 2 * noise, "retain": 3 * (first + second) / 2}
    )
    repairing = method.loss(student, empty_batch(done=0.5))
    assert {name: float(term.detach()) for name, term in repairing.items()} == pytest.approx(
        {"retain": 3 * (math.log(e + 1) - 1)}
    )


def test_the_original_matches_the_noise_with_anything_but_its_captions(tiny: Models) -> None:
    task = apple_task(tiny, mini_clip())
    start = EMMN(images=4, noise_steps=0).prepare(task)
    method = EMMN(images=4).prepare(task)
    assert torch.equal(start.ids, method.ids)
    text, _ = task.clip.encode_texts(method.ids)
    with torch.no_grad():
        before, after = (
            (task.clip.encode_image(m.pixels) * text).sum(-1).mean() for m in (start, method)
        )
    assert after < before - 0.05 and after < 0
    mentions = {tuple(row) for row in task.forget.ids[task.forget.mask.any(1)].tolist()}
    assert all(tuple(row) in mentions for row in method.ids.tolist())
