"""Lipschitz, EMMN and projection: numbers worked out by hand, and runs on tiny real models."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read
from erase_sd.data.split import split, with_images
from erase_sd.methods import METHODS, Batch, Reduced, Side, World
from erase_sd.methods.emmn import EMMN
from erase_sd.methods.hirm import HiRM
from erase_sd.methods.lipschitz import STDS, Lipschitz
from erase_sd.methods.projection import Projection, regression
from erase_sd.mini import WEIGHTS
from erase_sd.models.clip import Clip, Encoded
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip, text_encoders
from erase_sd.run import Run
from erase_sd.unlearning.captions import rows_of
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

APPLE = (Concept("apple"),)
NONE = torch.empty(0)
X, Y = [1.0, 0.0], [0.0, 1.0]


def batch(done: float = 0.0, forget: int = 2) -> Batch:
    nothing = Encoded(NONE, NONE, NONE)
    sides = Side(torch.zeros(forget, 1), nothing), Side(torch.ones(2, 1), nothing)
    return Batch(*sides, Reduced(NONE, NONE), done, torch.Generator().manual_seed(0))


class Plain:
    """A student whose caption n has the n-th feature, and whose image feature is its pixels, times
    `gain`; the retain pairs are X and Y, together."""

    scale = 1.0

    def __init__(self, texts: list[list[float]], gain: float = 1.0) -> None:
        self.texts = torch.tensor(texts)
        self.gain = torch.tensor(gain, requires_grad=True)

    def text(self, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
        return self.texts[ids[:, 0].long()], torch.zeros(len(ids), 1, 1)

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        return self.gain * pixels.flatten(1)

    def __call__(self, side: Side) -> Encoded:
        return Encoded(torch.tensor([X, Y]), torch.tensor([X, Y]), NONE)


def flat(*rows: list[float]) -> Tensor:
    """Images of as many pixels as the rows are long."""
    return torch.tensor(rows)[:, None, None]


# --- Lipschitz ---


def test_the_lipschitz_constant_equals_the_sum_done_by_hand() -> None:
    method = Lipschitz(batch=2, copies=2).at(2)
    assert method is not None
    method = dataclasses.replace(
        method, ids=torch.tensor([[0], [1]]), pixels=flat([3.0, 4.0], [1.0, 0.0]),
        labels=torch.tensor([0, 1]),
    )  # fmt: skip
    got = method.loss(Plain([[0.0, 0.0], Y]), batch())["lipschitz"]

    drawn = torch.Generator().manual_seed(0)
    order = torch.randperm(2, generator=drawn).tolist()
    by_hand = 0.0
    for _ in range(2):
        noise = (0.5 * torch.randn(2, 1, 1, 2, generator=drawn)).flatten(1).tolist()
        for number, (dx, dy) in zip(order, noise, strict=True):
            x, y = [(3.0, 4.0), (1.0, 0.0)][number]
            size = math.hypot(dx, dy)
            # The first image's caption is at 0, 0, the second's at Y.
            by_hand += (math.hypot(x + dx, y + dy - number) + size) / (2 * size)
    assert float(got.detach()) == pytest.approx(by_hand / 4, rel=1e-5)


def test_a_noisy_image_gets_no_gradient() -> None:
    method = dataclasses.replace(
        Lipschitz(batch=1, copies=1), ids=torch.tensor([[0]]), pixels=flat([3.0, 4.0]),
        labels=torch.tensor([0]),
    )  # fmt: skip
    student = Plain([[0.0, 0.0]], gain=1.0)
    method.loss(student, batch())["lipschitz"].backward()
    drawn = torch.Generator().manual_seed(0)
    torch.randperm(1, generator=drawn)
    dx, dy = (0.1 * torch.randn(1, 1, 1, 2, generator=drawn)).flatten().tolist()
    # Of |g x - v'| / (2 |n|) / 2 at g = 1, with v' = x + n held: -(n . x) / |n| / (2 |n|) / 2.
    by_hand = -(dx * 3 + dy * 4) / (dx * dx + dy * dy) / 4
    assert student.gain.grad is not None
    assert float(student.gain.grad) == pytest.approx(by_hand, rel=1e-4)


def test_what_is_left_is_the_share_of_images_still_taken_for_the_concept() -> None:
    images = flat(*[X] * 3, *[Y] * 7)
    method = dataclasses.replace(
        Lipschitz(stop=0.1), ids=torch.tensor([[0], [1]]), pixels=images,
        labels=torch.zeros(10, dtype=torch.long),
    )  # fmt: skip
    assert method.left(Plain([X, Y])) == pytest.approx(0.3)
    assert method.left(Plain([Y, X])) == pytest.approx(0.7)
    assert method.left(Plain([[-1.0, 0.0], [0.0, 1.0]])) == 0.0  # none is left
    few = dataclasses.replace(method, pixels=flat(X, *[Y] * 9))
    assert few.left(Plain([X, Y])) == 0.0  # one in ten is few enough


def test_each_stage_has_more_noise_and_more_tensors_and_the_last_ends_it() -> None:
    names = [f"text_model.encoder.layers.0.tensor{n}" for n in range(40)]
    method = dataclasses.replace(Lipschitz(tensors=3), ranking=(names, []))
    stages = [method.at(n) for n in range(len(STDS))]
    counts = [sum(map(stage.trains, names)) for stage in stages if stage]
    assert counts == [3, 5, 8, 11, 13, 18, 23] and STDS == (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    assert method.at(len(STDS)) is None
    assert method.trains(names[2]) and not method.trains(names[3])
    assert not method.trains("text_model.final_layer_norm.weight")


@pytest.fixture(scope="module")
def apple(tiny: Models) -> World:
    return world_of(tiny, load_clip(tiny.clip_folder(0), text_encoders(tiny.folder)[0]))


def world_of(models: Models, clip: Clip) -> World:
    data = read(models.pairs())
    sides = with_images(split(data.items, APPLE), data)
    forget = rows_of(clip, data, sides.forget["train"], APPLE, True)
    return World(clip, ("apple",), forget, rows_of(clip, data, sides.retain["train"], (), True), 0)


def mini_clip() -> Clip:
    return load_clip(WEIGHTS / "clip", text_encoders(WEIGHTS / "sd")[0])


def test_the_original_takes_the_synthetic_images_for_the_concept(tiny: Models) -> None:
    world = world_of(tiny, mini_clip())
    method = Lipschitz(images=3, batch=2, copies=1).prepare(world)
    assert method.pixels.shape == (3, 3, 64, 64)
    assert float(method.pixels.abs().max()) <= 1 + 1e-6  # what a processed picture can be
    text, _ = world.clip.encode_texts(method.ids)
    with torch.no_grad():
        logits = (
            world.clip.model.logit_scale.exp() * world.clip.encode_image(method.pixels) @ text.T
        )
        noise = torch.randn((3, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        before = world.clip.encode_image(noise) @ text.T
    assert (logits.softmax(-1)[:, 0] > 0.8).all()
    assert not (before.argmax(-1) == 0).any()  # the noise was none


def test_the_ranking_holds_the_tensors_inside_the_blocks_of_each_tower(apple: World) -> None:
    small = Lipschitz(images=2, iterations=3, batch=2, copies=1)
    method = small.prepare(apple)
    text, vision = method.ranking
    named = [name for name, _ in apple.clip.model.named_parameters()]
    for ranked, tower in ((text, "text_model"), (vision, "vision_model")):
        inside = [name for name in named if name.startswith(f"{tower}.encoder.layers.")]
        assert sorted(ranked) == sorted(inside)
    assert not any(p.requires_grad for p in apple.clip.model.parameters())
    again = small.prepare(apple)
    assert again.ranking == method.ranking and torch.equal(again.pixels, method.pixels)


def test_each_of_several_concepts_has_images_of_its_own(apple: World) -> None:
    both = dataclasses.replace(apple, concepts=("apple", "chair"))
    method = Lipschitz(images=2, iterations=1, batch=4, copies=1).prepare(both)
    assert method.labels.tolist() == [0, 0, 1, 1] and len(method.pixels) == 4
    asked = apple.clip.tokens(["A picture of apple", "A picture of chair"])
    assert torch.equal(method.ids[:2], asked)
    assert len({tuple(row) for row in method.ids.tolist()}) == len(method.ids) > 3


# --- EMMN ---


def test_emmn_impairs_on_noise_and_then_repairs_without_it() -> None:
    # Noise pair: caption X, noise Y; retain pairs X-X and Y-Y. Images Y X Y, captions X X Y.
    method = dataclasses.replace(
        EMMN(impair_weight=2.0, retain_weight=3.0, impair_share=0.5),
        ids=torch.tensor([[0]]),
        pixels=flat(Y),
    )
    student = Plain([X])
    impairing = method.loss(student, batch(done=0.49))
    e = math.e
    noise = (math.log(2 + e) - 0 + math.log(2 + e) - 0) / 2  # its row 0 0 1, its column 0 1 0
    first = (math.log(2 * e + 1) - 1 + math.log(2 + e) - 1) / 2  # row 1 1 0, column 0 1 0
    second = (math.log(2 + e) - 1 + math.log(2 * e + 1) - 1) / 2  # row 0 0 1, column 1 0 1
    assert {name: float(term.detach()) for name, term in impairing.items()} == pytest.approx(
        {"impair": 2 * noise, "retain": 3 * (first + second) / 2}
    )
    repairing = method.loss(student, batch(done=0.5))
    assert {name: float(term.detach()) for name, term in repairing.items()} == pytest.approx(
        {"retain": 3 * (math.log(e + 1) - 1)}
    )


def test_the_noise_is_what_the_original_takes_for_anything_but_the_captions(tiny: Models) -> None:
    world = world_of(tiny, mini_clip())
    start = EMMN(images=4, noise_steps=0).prepare(world)
    method = EMMN(images=4).prepare(world)
    assert torch.equal(start.ids, method.ids)
    text, _ = world.clip.encode_texts(method.ids)
    with torch.no_grad():
        before, after = (
            (world.clip.encode_image(m.pixels) * text).sum(-1).mean() for m in (start, method)
        )
    assert after < before - 0.05 and after < 0
    rows = {tuple(row) for row in world.forget.ids[world.forget.mask.any(1)].tolist()}
    assert all(tuple(row) in rows for row in method.ids.tolist())  # each names the concept


# --- Projection ---


def test_the_regression_is_numpys_least_squares_on_stacked_rows() -> None:
    dice = np.random.default_rng(0)
    keys, wanted = dice.normal(size=(5, 4)), dice.normal(size=(5, 3))
    k, d = keys.T @ keys, wanted.T @ keys
    strength = 0.1 * np.trace(k) / 4
    stacked = np.vstack([keys, np.sqrt(strength) * np.eye(4)])
    by_hand = np.linalg.lstsq(stacked, np.vstack([wanted, np.zeros((4, 3))]), rcond=None)[0].T
    got = regression(torch.from_numpy(k), torch.from_numpy(d), 0.1)
    np.testing.assert_allclose(got.numpy(), by_hand, atol=1e-12)


def test_what_enters_only_with_the_rest_keeps_its_output() -> None:
    # The forget input is the first axis, the retain inputs span the others and lack nothing.
    keys = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    wanted = torch.tensor([[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    got = regression(keys, wanted, 0.0)
    assert got.tolist() == [[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]]


def inside(model: CLIPModel, ids: Tensor, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A layer's MLP input to its output matrix and the residual stream behind it, by hand."""
    with torch.no_grad():
        out = model.text_model(input_ids=ids, output_hidden_states=True)
        layer = model.text_model.encoder.layers[number]
        attended: dict[str, Tensor] = {}
        hook = layer.layer_norm2.register_forward_hook(lambda _, __, x: attended.update(x=x))
        model.text_model(input_ids=ids)
        hook.remove()
        key = layer.mlp.activation_fn(layer.mlp.fc1(attended["x"]))
    return key.double().numpy(), out.hidden_states[number + 1].double().numpy()


def test_one_layer_gets_the_least_squares_solution_worked_out_apart(apple: World) -> None:
    method = Projection(first_layer=1, captions=20, retain_weight=2.0, ridge=1e-3)
    solved = method.solve(apple)
    [name] = solved
    assert name == "text_model.encoder.layers.1.mlp.fc2.weight"

    model = apple.clip.model
    stack, lack = [], []
    for rows, weight in ((apple.forget, 1.0), (apple.retain, 2.0)):
        there = rows.mask.any(1) if weight == 1.0 else torch.ones(len(rows), dtype=torch.bool)
        numbers = torch.nonzero(there).flatten()
        picked = numbers[[n * len(numbers) // 20 for n in range(20)]]
        key, now = inside(model, rows.ids[picked], 1)
        _, then = inside(model, rows.reduced_ids[picked], 1)
        then = np.take_along_axis(then, rows.source[picked].numpy()[:, :, None], axis=1)
        share = np.sqrt(weight / (key.shape[0] * key.shape[1]))
        stack.append(share * key.reshape(-1, key.shape[-1]))
        lack.append(share * (then - now).reshape(-1, now.shape[-1]))
    keys, wanted = np.vstack(stack), np.vstack(lack)
    strength = np.sqrt(1e-3 * np.square(keys).sum() / keys.shape[1])
    padded = np.vstack([keys, strength * np.eye(keys.shape[1])])
    zeros = np.zeros((keys.shape[1], wanted.shape[1]))
    change = np.linalg.lstsq(padded, np.vstack([wanted, zeros]), rcond=None)[0].T
    before = model.get_parameter(name).detach().double().numpy()
    np.testing.assert_allclose(solved[name].double().numpy(), before + change, atol=1e-4)


def test_projection_says_the_caption_without_the_concept_and_leaves_the_original(
    apple: World,
) -> None:
    before = {n: p.clone() for n, p in apple.clip.model.named_parameters()}
    solved = Projection(retain_weight=1.0).solve(apple)
    assert all(torch.equal(before[n], p) for n, p in apple.clip.model.named_parameters())
    assert set(solved) == {f"text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (0, 1)}

    named = apple.forget.mask.any(1)
    wanted = apple.clip.encode_texts(apple.forget.reduced_ids[named])[1]
    wanted = wanted.gather(1, apple.forget.source[named][:, :, None].expand_as(wanted))
    was, kept = (apple.clip.encode_texts(i)[1] for i in (apple.forget.ids[named], apple.retain.ids))
    model = CLIPModel(apple.clip.model.config).eval()
    model.load_state_dict(before | solved, strict=False)
    clip = dataclasses.replace(apple.clip, model=model)
    now, held = (clip.encode_texts(i)[1] for i in (apple.forget.ids[named], apple.retain.ids))
    assert (now - wanted).square().mean() < 0.5 * (was - wanted).square().mean()
    assert (held - kept).square().mean() < 0.2 * (kept - kept.mean(0)).square().mean()


# --- HiRM ---


def test_hirm_turns_to_a_random_direction_or_to_a_word_at_the_states_own_length(
    apple: World,
) -> None:
    drawn = [HiRM().prepare(dataclasses.replace(apple, seed=seed)) for seed in (0, 0, 1)]
    _, states = apple.clip.encode_texts(drawn[0].ids)
    assert len(drawn[0].ids) == len(HiRM().templates)
    length = float(states[:, 1:].norm(dim=-1).mean())
    assert all(float(method.target.norm()) == pytest.approx(length, rel=1e-5) for method in drawn)
    assert torch.equal(drawn[0].target, drawn[1].target)
    assert not torch.equal(drawn[0].target, drawn[2].target)
    _, fruit = apple.clip.encode_texts(apple.clip.tokens(["orange"]))
    toward = HiRM(toward="orange").prepare(apple).target
    assert float(F.cosine_similarity(toward, fruit[0, -1], dim=0)) == pytest.approx(1, abs=1e-5)


# --- Those that prepare, through the stage ---

SMALL: dict[str, dict[str, object]] = {
    "lipschitz": {"images": 4, "iterations": 40, "batch": 2, "copies": 1},
    "emmn": {"images": 4, "noise_steps": 2},
    "projection": {"captions": 20},
}


def short(method: str) -> Settings:
    return Settings(
        concepts=APPLE, method=method, weights=SMALL[method], steps=6, validate_every=2,
        forget_batch=4, retain_batch=4, rate=1e-4,
    )  # fmt: skip


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "erased" / "model.safetensors")


class StopError(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("method", ["lipschitz", "emmn"])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tiny: Models, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken back at the first look, kept in the second stage, taken back there.
    monkeypatch.setattr(Lipschitz, "left", lambda method, student: 1 / (2 + method.stage))
    models = dataclasses.replace(tiny, model=WEIGHTS / "sd", clips=(WEIGHTS / "clip",))
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(short(method), models, whole)
    assert whole.manifest["stages"]["unlearn"]["steps"] == 6

    def stop(done: int, of: int, terms: dict[str, float]) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        unlearn(short(method), models, broken, stop)
    unlearn(short(method), models, broken)
    base = load_file(models.model / "text_encoder" / "model.safetensors")
    one, other = weights(whole), weights(broken)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], base[name]) for name in one)


def test_projection_is_done_in_one_look(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short("projection"), tiny, run)
    entry = run.manifest["stages"]["unlearn"]
    assert (entry["stopped"], entry["steps"]) == ("solved", 0)
    [row] = [json.loads(line) for line in (run.folder / "train.jsonl").read_text().splitlines()]
    assert row["step"] == 0 and row["validation_retain"] > 0.5
    base = load_file(tiny.model / "text_encoder" / "model.safetensors")
    moved = {name for name, tensor in weights(run).items() if not torch.equal(tensor, base[name])}
    assert moved == {f"text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (0, 1)}


@pytest.mark.parametrize("name", SMALL)
def test_what_prepare_makes_is_no_setting(name: str) -> None:
    assert not {"ids", "pixels", "labels", "ranking", "stage"} & set(METHODS[name].settings())
