"""EMMN: its two phases worked out by hand, and its noise."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from method_task import LinearStudent, X, Y, apple_task, empty_batch, flat_images, mini_clip

from erase_sd.methods import emmn
from erase_sd.methods.base import Encodings
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
    other = EMMN(images=4, noise_steps=0).prepare(dataclasses.replace(task, seed=1))
    assert not torch.equal(other.pixels, start.pixels)


def test_the_noise_is_of_captions_that_mention_the_concept(tiny: Models) -> None:
    task = apple_task(tiny)
    mask = task.forget.mask.clone()
    mask[::2] = 0
    rows = torch.arange(len(mask))  # for their numbers
    forget = dataclasses.replace(task.forget, mask=mask, label=rows)
    method = EMMN(images=4, noise_steps=0).prepare(dataclasses.replace(task, forget=forget))
    assert method.label is not None and all(row % 2 for row in method.label.tolist())
    assert method.ids.equal(forget.ids[method.label])


def test_the_noise_ascends_its_error_and_decays() -> None:
    # Similarities 0.25 times (-5, 0), of which the first is the image's own; nothing reads the third
    # number. The error falls by 0.25 * (1 - 0.22) with the first, less than the decay of 0.15 * 2 * 5 / 3;
    # with similarities four times as large it would be more. The second rises with the error. Adam's first
    # step is the learning rate in each.
    texts = torch.eye(2)
    clip: Any = SimpleNamespace(
        scale=0.25, device="cpu", encode_texts=lambda ids: (texts, None),
        encode_image=lambda pixels: pixels.flatten(1)[:, :2],
    )  # fmt: skip
    method = EMMN(noise_steps=1, noise_decay=0.15, noise_learning_rate=0.1)
    start = torch.tensor([-5.0, 0.0, 2.0]).view(1, 3, 1, 1)
    pixels = method._noise(clip, start, torch.zeros(2, 1), None)
    assert pixels.flatten().tolist() == pytest.approx([-4.9, 0.1, 1.9], abs=1e-5)


def test_each_noise_image_goes_with_its_own_caption_and_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = torch.arange(9)
    method = dataclasses.replace(
        EMMN(), ids=numbers[:, None], pixels=flat_images(*[[float(n), 1.0] for n in numbers]),
        label=numbers,
    )  # fmt: skip
    given: list[Encodings] = []

    def keep(_: object, noise: Encodings, __: object) -> tuple[torch.Tensor, torch.Tensor]:
        given.append(noise)
        return torch.zeros(2), torch.zeros(2)

    monkeypatch.setattr(emmn, "contrast", keep)
    method.loss(LinearStudent([[float(n), 1.0] for n in numbers]), empty_batch())
    [noise] = given
    chosen = (noise.text[:, 0] / noise.text[:, 1]).round().tolist()
    assert len(chosen) == 2 and chosen != [0, 1]  # as many as forget pairs, at random
    assert (noise.image[:, 0] / noise.image[:, 1]).round().tolist() == chosen
    assert noise.label is not None and noise.label.tolist() == chosen
