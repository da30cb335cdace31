"""Lipschitz unlearning: its constant worked out by hand, its synthetic images, its stages."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from method_task import LinearStudent, X, Y, apple_task, empty_batch, flat_images, mini_clip
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from erase_sd.data.coco import COCO
from erase_sd.methods.base import Task
from erase_sd.methods.lipschitz import NOISE_STDS, Lipschitz, _classes_named_by
from erase_sd.models.presets import Models


@pytest.fixture(scope="module")
def apple(tiny: Models) -> Task:
    return apple_task(tiny)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])  # both orders of the images
def test_the_lipschitz_constant_matches_a_hand_computed_sum(seed: int) -> None:
    method = dataclasses.replace(
        Lipschitz(batch=2, copies=2), ids=torch.tensor([[0], [1]]),
        pixels=flat_images([3.0, 4.0], [1.0, 0.0]), labels=torch.tensor([0, 1]),
    ).stages()[2]  # fmt: skip
    batch = dataclasses.replace(empty_batch(), generator=torch.Generator().manual_seed(seed))
    loss = method.loss(LinearStudent([[0.0, 0.0], [0.0, 2.0]]), batch)["lipschitz"]

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(2, generator=generator).tolist()
    by_hand = 0.0
    for _ in range(2):
        noise = (0.5 * torch.randn(2, 1, 1, 2, generator=generator)).flatten(1).tolist()
        for number, (dx, dy) in zip(order, noise, strict=True):
            x, y = [(3.0, 4.0), (1.0, 0.0)][number]
            size = math.hypot(dx, dy)
            # The first image's caption is at (0, 0), the second's at (0, 2).
            by_hand += (math.hypot(x + dx, y + dy - 2 * number) + size) / (2 * size)
    assert float(loss.detach()) == pytest.approx(by_hand / 4, rel=1e-5)


def test_a_noisy_image_gets_no_gradient() -> None:
    method = dataclasses.replace(
        Lipschitz(batch=1, copies=1), ids=torch.tensor([[0]]), pixels=flat_images([3.0, 4.0]),
        labels=torch.tensor([0]),
    )  # fmt: skip
    student = LinearStudent([[0.0, 0.0]], gain=1.0)
    method.loss(student, empty_batch())["lipschitz"].backward()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    torch.randperm(1, generator=generator)
    dx, dy = (0.1 * torch.randn(1, 1, 1, 2, generator=generator)).flatten().tolist()
    # The derivative of |g x - v'| / (2 |n|) / 2 at g = 1, with v' = x + n constant:
    # -(n . x) / |n| / (2 |n|) / 2.
    by_hand = -(dx * 3 + dy * 4) / (dx * dx + dy * dy) / 4
    assert student.gain.grad is not None
    assert float(student.gain.grad) == pytest.approx(by_hand, rel=1e-4)


def test_the_residual_is_the_share_of_images_still_classified_as_the_concept() -> None:
    method = dataclasses.replace(
        Lipschitz(stop=0.1), ids=torch.tensor([[0], [1]]),
        pixels=flat_images(*[X] * 3, *[Y] * 7), labels=torch.zeros(10, dtype=torch.long),
    )  # fmt: skip
    assert method.residual(LinearStudent([X, Y])) == pytest.approx(0.3)
    assert method.residual(LinearStudent([Y, X])) == pytest.approx(0.7)
    assert method.residual(LinearStudent([[-1.0, 0.0], [0.0, 1.0]])) == 0.0
    few = dataclasses.replace(method, pixels=flat_images(X, *[Y] * 9))
    assert few.residual(LinearStudent([X, Y])) == 0.0  # at most `stop`


def test_each_stage_has_more_noise_and_trains_more_tensors() -> None:
    names = [f"text_model.encoder.layers.0.tensor{n}" for n in range(40)]
    method = dataclasses.replace(Lipschitz(tensors=3), ranking=(names, []))
    counts = [sum(map(stage.trains, names)) for stage in method.stages()]
    assert counts == [3, 5, 8, 11, 13, 18, 23]
    assert NOISE_STDS == (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    assert method.trains(names[2]) and not method.trains(names[3])
    assert not method.trains("text_model.final_layer_norm.weight")


def test_an_ascent_step_has_its_length_and_lands_where_it_was_computed() -> None:
    # Images of 16 px, moved by up to 1 px for the step, of 7 * 16 / 224 = 0.5; the features are linear.
    weights = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    clip: Any = SimpleNamespace(
        scale=0.01, image_size=16,
        processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.05] * 3),
        encode_image=lambda pixels: pixels.flatten(1) @ weights.flatten(1).T,
    )  # fmt: skip
    task: Any = SimpleNamespace(clip=clip, concepts=("chair", "apple"))
    method, shifts = Lipschitz(images=2, iterations=1, ascent=7.0, probability=1.0), set()
    for seed in range(4):
        pixels = method._synthesize(task, torch.eye(2), 1, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(2, 3, 16, 16, generator=generator)
        across, down = torch.randint(2, (2,), generator=generator).tolist()
        shifts.add((across, down))
        norm = start.flatten(1).norm(dim=1)[:, None, None, None]
        slope = 0.01 * weights[1].roll((-down, -across), (1, 2)) - 1e-3 * start / norm
        step = 0.5 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
        by_hand = gaussian_blur(start + step, [5, 5], [0.5, 0.5])
        torch.testing.assert_close(pixels, by_hand, rtol=0, atol=1e-6)
    assert len(shifts) > 1


def test_tensors_rank_by_the_mean_size_of_their_gradients() -> None:
    # The text feature's gradient is 5 and -5 by `two`, 3 by `one`, and 1 by each of `four`.
    text = {"four": torch.ones(4), "one": torch.ones(1), "two": torch.ones(2)}

    @dataclasses.dataclass
    class Clip:
        model: Any
        blocks = ("text.", "image.")

        def encode_text(self, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
            own = self.model["text"]
            feature = 5 * (own["two"][0] - own["two"][1]) + 3 * own["one"].sum() + own["four"].sum()
            return feature.expand(len(ids), 1), ids

        def encode_image(self, pixels: Tensor, unit: bool = True) -> Tensor:
            return self.model["image"]["gain"] * pixels.flatten(1)

    towers = {"text": text, "image": {"gain": torch.ones(1)}}
    clip: Any = Clip(nn.ModuleDict({name: nn.ParameterDict(own) for name, own in towers.items()}))
    method = dataclasses.replace(
        Lipschitz(copies=1), ids=torch.tensor([[0]]), pixels=torch.ones(1, 1, 1, 1),
        labels=torch.tensor([0]),
    )  # fmt: skip
    ranking = method._rank(clip, torch.Generator().manual_seed(0))
    assert ranking == (["text.two", "text.one", "text.four"], ["image.gain"])


def test_the_other_classes_are_those_that_captions_name_or_all() -> None:
    class Pairs:
        def __init__(self, captions: list[str]) -> None:
            self.pairs = [SimpleNamespace(caption=caption, label=None) for caption in captions]

        def __len__(self) -> int:
            return len(self.pairs)

    for captions, classes in (
        (["a dog on the sand", "two chairs"], {"dog", "chair"}),
        (["a plain field"], set(COCO)),
    ):
        given: Any = Pairs(captions)
        assert set(_classes_named_by(given)) == classes


def test_the_original_classifies_the_synthetic_images_as_the_concept(tiny: Models) -> None:
    task = apple_task(tiny, mini_clip())
    method = Lipschitz(images=3, batch=2, copies=1).prepare(task)
    assert method.pixels.shape == (3, 3, 64, 64)
    assert float(method.pixels.abs().max()) <= 1 + 1e-6  # the range of a processed image
    text, _ = task.clip.encode_texts(method.ids)
    with torch.no_grad():
        logits = task.clip.model.logit_scale.exp() * task.clip.encode_image(method.pixels) @ text.T
        noise = torch.randn((3, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        before = task.clip.encode_image(noise) @ text.T
    assert (logits.softmax(-1)[:, 0] > 0.8).all()
    assert not (before.argmax(-1) == 0).any()


def test_images_below_the_probability_are_used_with_a_warning(
    apple: Task, caplog: pytest.LogCaptureFixture
) -> None:
    method = Lipschitz(images=2, iterations=1, batch=2, copies=1, probability=1.0).prepare(apple)
    assert len(method.pixels) == 2
    assert "2 of 2 synthetic images of apple are below the probability of 1" in caplog.text


def test_the_ranking_holds_the_tensors_inside_the_blocks_of_each_tower(apple: Task) -> None:
    small = Lipschitz(images=2, iterations=3, batch=2, copies=1)
    method = small.prepare(apple)
    text, vision = method.ranking
    names = [name for name, _ in apple.clip.model.named_parameters()]
    for ranking, tower in ((text, "text_model"), (vision, "vision_model")):
        inside = [name for name in names if name.startswith(f"{tower}.encoder.layers.")]
        assert sorted(ranking) == sorted(inside)
    assert not any(p.requires_grad for p in apple.clip.model.parameters())
    again = small.prepare(apple)
    assert again.ranking == method.ranking and torch.equal(again.pixels, method.pixels)
    other = small.prepare(dataclasses.replace(apple, seed=1))
    assert not torch.equal(other.pixels, method.pixels)


def test_each_of_several_concepts_has_images_of_its_own(apple: Task) -> None:
    both = dataclasses.replace(apple, concepts=("apple", "chair"))
    method = Lipschitz(images=2, iterations=1, batch=4, copies=1).prepare(both)
    assert method.labels.tolist() == [0, 0, 1, 1] and len(method.pixels) == 4
    prompts = apple.clip.tokens(["A picture of apple", "A picture of chair"])
    assert torch.equal(method.ids[:2], prompts)
    assert len({tuple(row) for row in method.ids.tolist()}) == len(method.ids) > 3
