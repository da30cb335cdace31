"""Methods that work with the U-Net: hand-worked values on small tensors, and what each changes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_task import APPLE, apple_task, empty_batch
from torch import Tensor

from erase_sd.errors import DataError, SettingError
from erase_sd.methods import cross_attention
from erase_sd.methods.advunlearn import AdvUnlearn, prefixed
from erase_sd.methods.base import Task
from erase_sd.methods.concept_ablation import ConceptAblation
from erase_sd.methods.concept_prompts import (
    concept_images,
    concept_prompts,
    denoiser_of,
    mentioning,
)
from erase_sd.methods.cross_attention import TextMoments, edit, moments
from erase_sd.methods.esd import ESD
from erase_sd.methods.few_shot import FewShot
from erase_sd.methods.forget_me_not import ForgetMeNot, steered
from erase_sd.methods.rece import RECE, revival
from erase_sd.methods.uce import UCE
from erase_sd.models import unet as unet_module
from erase_sd.models.denoiser import Noisy, open_denoiser
from erase_sd.models.pipeline import embed
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_text_encoder
from erase_sd.models.unet import load_unet
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn
from erase_sd.unlearning.unet_metrics import predict_originals, unet_metrics

DOUBLE = torch.float64


class LinearDenoiser:
    """Predicts each latent times its prompt's one number; attention is that number too."""

    device = torch.device("cpu")

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = torch.tensor(gain, requires_grad=True)

    def predict(self, noisy: Noisy, prompts: Any) -> Tensor:
        return self.gain * noisy.latents * prompts["prompt_embeds"][:, :1, :1, None]

    def sample(self, prompts: Any, *_: Any, **__: Any) -> Noisy:
        count = len(prompts["prompt_embeds"])
        return Noisy(torch.full((count, 1, 1, 1), 2.0), torch.zeros(count))

    def add_noise(self, latents: Tensor, generator: torch.Generator) -> tuple[Noisy, Tensor]:
        return Noisy(latents, torch.zeros(len(latents))), torch.full_like(latents, 5.0)

    def loss(self, latents: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
        return (latents.flatten(1).sum(1) - states.flatten(1).sum(1)).square()

    def attention(self, noisy: Noisy, prompts: Any) -> list[Tensor]:
        one = torch.tensor([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])  # (pixels, tokens)
        return [one[None, None].repeat(len(noisy.times), 1, 1, 1)] * 2

    def encode(self, ids: Tensor) -> dict[str, Tensor]:
        return {"prompt_embeds": ids.float()[:, :, None]}


class Student:
    """A student of which only the denoiser, or only `text`, is used."""

    scale = 1.0

    def __init__(self, denoiser: Any = None, gain: float = 1.0) -> None:
        self.denoiser = denoiser
        self.gain = torch.tensor(gain, requires_grad=True)

    def text(self, ids: Tensor, unit: bool = True, free: Any = None) -> tuple[Tensor, Tensor]:
        states = self.gain * ids.float()[:, :, None]
        if free is not None:
            states = torch.where(free.mask[..., None], free.embeddings, states)
        return states[:, 0], states


def number(value: float, rows: int = 1) -> dict[str, Tensor]:
    return {"prompt_embeds": torch.full((rows, 1, 1), value)}


def terms(method: Any, student: Any) -> dict[str, float]:
    return {
        name: float(term.detach()) for name, term in method.loss(student, empty_batch()).items()
    }


def test_the_edit_is_uces_equation_on_two_directions() -> None:
    # The concept reads e1 as e2, e2 is retained: without a ridge T e1 = e2 and T e2 = e2.
    concept = moments(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    kept = moments(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    transform = edit(concept + kept, 0.0)
    assert transform.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    # Eq. 7 for one W: (W c* c^T + W r r^T)(c c^T + r r^T)^-1.
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=DOUBLE)
    edited = cross_attention.edited({"w": w}, transform)["w"]
    assert edited.tolist() == [[2.0, 2.0], [4.0, 4.0]]


def test_the_ridge_holds_the_edit_to_what_was_before() -> None:
    # One number: c = 2 is to be read as 6. c c = 4, c* c = 12, s = 0.5 * 4 = 2.
    wanted = TextMoments(torch.tensor([[4.0]], dtype=DOUBLE), torch.tensor([[12.0]], dtype=DOUBLE))
    assert float(edit(wanted, 0.5)) == pytest.approx((12 + 2) / 6)
    before = torch.tensor([[7.0]], dtype=DOUBLE)
    assert float(edit(wanted, 0.5, before)) == pytest.approx((12 + 14) / 6)


def test_the_edit_minimizes_its_sum_of_squares() -> None:
    read = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.3]], dtype=DOUBLE)
    toward = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]], dtype=DOUBLE)
    before = torch.tensor([[1.0, 0.3], [-0.2, 0.8]], dtype=DOUBLE)
    transform = edit(moments(read, toward), 0.4, before).requires_grad_()
    strength = 0.4 * float(read.square().mean())
    error = (read @ transform.T - toward).square().sum(1).mean()
    loss = error + strength * (transform - before).square().sum()
    [slope] = torch.autograd.grad(loss, transform)
    assert float(slope.abs().max()) < 1e-12


def test_the_retain_weight_trades_the_concept_for_what_is_retained() -> None:
    # The same number 1 is to become 0 and to stay 1: with weight 3, T = 3 / 4.
    concept = moments(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    kept = moments(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    assert float(edit(concept + kept.scaled(3.0), 0.0)) == pytest.approx(0.75)


def test_a_revived_embedding_is_read_by_the_edited_matrix_as_the_concept_was() -> None:
    # W = 3, T = 1/2: the edited 1.5 c' = 3 c at c' = 2 c; a ridge of 1 doubles the denominator.
    gram, half = torch.tensor([[9.0]], dtype=DOUBLE), torch.tensor([[0.5]], dtype=DOUBLE)
    assert float(revival(gram, half, 0.0)) == pytest.approx(2.0)
    assert float(revival(gram, half, 1.0)) == pytest.approx(1.0)


def test_esd_is_guided_away_from_the_concept() -> None:
    # Latent 2. The original predicts 2 * 3 = 6 with the concept and 2 * 1 = 2 without; its target is
    # 2 - 0.5 * (6 - 2) = 0. The student, twice the original, predicts 12.
    original: Any = LinearDenoiser()
    method = ESD(
        rows=1, negative_guidance=0.5, original=original, asked=number(3.0), instead=number(1.0)
    )
    assert terms(method, Student(LinearDenoiser(2.0))) == {"erase": 144.0}
    assert method.trains("mid_block.attn2.to_q.weight") and not method.trains("conv_in.weight")
    other = ESD(variant="u")
    assert other.trains("conv_in.weight") and not other.trains("mid_block.attn2.to_q.weight")


def over_seeds(method: Any, make: Callable[[], Any]) -> dict[str, set[float]]:
    """The values that each term has over several seeds."""
    values: dict[str, set[float]] = {}
    for seed in range(12):
        batch = dataclasses.replace(empty_batch(), generator=torch.Generator().manual_seed(seed))
        for name, term in method.loss(make(), batch).items():
            values.setdefault(name, set()).add(float(term.detach()))
    return values


def test_esd_denoises_with_the_student_and_sets_each_prompt_against_its_own_counterpart() -> None:
    calls: list[dict[str, int | float]] = []

    class Samples(LinearDenoiser):
        def sample(self, prompts: Any, *_: Any, **given: Any) -> Noisy:
            assert self.gain == 2  # the student, not the original
            calls.append(given)
            return super().sample(prompts)

    original: Any = LinearDenoiser()
    method = ESD(
        rows=1, original=original, sampling_steps=3, sampling_guidance=4.5,
        asked={"prompt_embeds": torch.tensor([3.0, 9.0])[:, None, None]},
        instead={"prompt_embeds": torch.tensor([1.0, 2.0])[:, None, None]},
    )  # fmt: skip
    # Latent 2, student 2: 12 for 2 - (6 - 2), and 36 for 4 - (18 - 4).
    values = over_seeds(method, lambda: Student(Samples(2.0)))
    assert values == {"erase": {14.0**2, 46.0**2}}
    assert all(call["steps"] == 3 and call["guidance"] == 4.5 for call in calls)
    assert {call["taken"] for call in calls} == {0, 1, 2}


def test_concept_ablation_terms_match_hand_computed_sums() -> None:
    # Latent 2, student 2: 12 under the concept, 4 under the anchor, whose answer is 5.
    method = ConceptAblation(
        rows=1, anchor_weight=3.0, asked=number(3.0), anchor=number(1.0),
        latents=torch.full((1, 1, 1, 1), 2.0),
    )  # fmt: skip
    student = Student(LinearDenoiser(2.0))
    assert terms(method, student) == {"ablate": 64.0, "anchor": 3.0}
    loss = method.loss(student, empty_batch())["ablate"]
    [gradient] = torch.autograd.grad(loss, student.denoiser.gain)
    assert float(gradient) == 2 * 8 * 6  # the anchor's prediction is a target without gradient


def test_forget_me_not_sums_the_squared_probabilities_of_the_name() -> None:
    # Two layers; the name is the middle token: (0.5^2 + 0.2^2) / 2 pixels each.
    method = ForgetMeNot(
        rows=1, prompts=number(1.0), steered=torch.tensor([[0.0, 1.0, 0.0]]),
        latents=torch.zeros(1, 1, 1, 1),
    )  # fmt: skip
    assert terms(method, Student(LinearDenoiser()))["attention"] == pytest.approx(0.29)


def test_forget_me_not_steers_away_from_the_name_and_from_what_comes_after_it() -> None:
    # Start, a word, the name's two tokens, a word, the end of the text, its padding.
    ids = torch.tensor([[7, 1, 2, 3, 4, 9, 9]])
    first, last, end = (torch.tensor([n]) for n in (2, 3, 5))
    assert steered("name", ids, first, last, end).tolist() == [[0, 0, 1, 1, 0, 0, 0]]
    assert steered("name-end", ids, first, last, end).tolist() == [[0, 0, 1, 1, 0, 1, 1]]
    assert steered("onward", ids, first, last, end).tolist() == [[0, 0, 1, 1, 1, 1, 1]]


def test_few_shot_maximizes_the_denoising_loss() -> None:
    # The image's latents sum to 4, the states to 1 + 2: -(4 - 3)^2.
    denoiser: Any = LinearDenoiser()
    method = FewShot(
        rows=1, denoiser=denoiser, ids=torch.tensor([[1, 2]]), latents=torch.full((1, 1, 2, 2), 1.0),
        last="text_model.encoder.layers.1.self_attn.",
    )  # fmt: skip
    assert terms(method, Student()) == {"forget": -1.0}
    assert method.trains("text_model.encoder.layers.0.mlp.fc1.weight")
    assert method.trains("text_model.encoder.layers.1.self_attn.q_proj.weight")
    assert not method.trains("text_model.encoder.layers.0.self_attn.q_proj.weight")
    assert not method.trains("text_model.final_layer_norm.weight")


def adversarial(**settings: Any) -> AdvUnlearn:
    """One prompt, id 3 instead of 1, on a latent of 2; the retain prompt is 1."""
    denoiser: Any = LinearDenoiser()
    one = torch.full((1, 1, 1, 1), 2.0)
    return AdvUnlearn(
        rows=1, original=denoiser, asked=torch.tensor([[3, 3]]), instead=torch.tensor([[1, 1]]),
        concept_latents=one, retain_ids=torch.tensor([[1, 1]]), retain_latents=one,
        words=torch.tensor([[4.0]]), **settings,
    )  # fmt: skip


def test_advunlearn_terms_match_hand_computed_sums() -> None:
    # Original 6 with the concept, 2 without: target 2 - 1 * 4 = -2. A student of gain 2 predicts 12,
    # and 4 under the retain prompt, where the original predicts 2.
    method = adversarial(tokens=0, retain_weight=3.0)
    assert terms(method, Student(gain=2.0)) == {"erase": 14.0**2, "retain": 3 * 2.0**2}


def test_advunlearn_pairs_prompts_with_their_counterparts_and_images() -> None:
    # A student of gain 2 predicts 12 for 2 - (6 - 2) / 2, and 36 for 4 - (18 - 4) / 2; it is off by the
    # latent times the retain prompt: 2 * 1, 10 * 5.
    method = dataclasses.replace(
        adversarial(tokens=0, negative_guidance=0.5), asked=torch.tensor([[3, 3], [9, 9]]),
        instead=torch.tensor([[1, 1], [2, 2]]), retain_ids=torch.tensor([[1, 1], [5, 5]]),
        retain_latents=torch.tensor([2.0, 10.0])[:, None, None, None],
    )  # fmt: skip
    values = over_seeds(method, lambda: Student(gain=2.0))
    assert values == {"erase": {12.0**2, 39.0**2}, "retain": {2.0**2, 50.0**2}}
    assert method.trains("text_model.encoder.layers.0.mlp.fc1.weight")
    assert not method.trains("text_model.embeddings.token_embedding.weight")


class Reads(Student):
    """What follows the start is read."""

    def text(self, ids: Tensor, unit: bool = True, free: Any = None) -> tuple[Tensor, Tensor]:
        _, states = super().text(ids, unit, free)
        return states[:, 0], states[:, 1:]


def test_advunlearn_erases_behind_the_prefix_and_retains_without_it() -> None:
    # The prefix 4 takes the place of what is read: 8 instead of -2; the retain prompt is off by 2.
    method = adversarial(attack_steps=0)
    assert terms(method, Reads(gain=2.0)) == {"erase": 100.0, "retain": 4.0}


def test_the_attack_moves_the_prefix_toward_the_originals_prediction() -> None:
    # The first state is read; the free embedding behind it is not, so the attack has no gradient there.
    ids, free = prefixed(torch.tensor([[7, 8, 9]]), torch.tensor([[[5.0]]]))
    assert ids.tolist() == [[7, 8, 8]]
    assert free.mask.tolist() == [[False, True, False]] and float(free.embeddings[0, 1, 0]) == 5.0

    # The prefix 4 predicts 8, the concept 6, at 3: three steps of 0.25 lead to 3.25.
    method = adversarial(attack_steps=3, attack_size=0.25)
    noisy = Noisy(torch.full((1, 1, 1, 1), 2.0), torch.zeros(1))
    target, random = torch.full((1, 1, 1, 1), 6.0), torch.Generator()
    prefix = method._attacked(Reads(), noisy, torch.tensor([[3, 3]]), target, random)  # type: ignore[arg-type]
    assert prefix is not None and float(prefix) == pytest.approx(3.25)


@pytest.fixture(scope="module")
def apple(tiny: Models) -> Task:
    denoiser = open_denoiser(tiny.folder, "fp32")
    return dataclasses.replace(apple_task(tiny), open_denoiser=lambda: denoiser)


def test_token_ids_are_encoded_as_the_pipeline_encodes_their_text(apple: Task) -> None:
    texts = ["an apple", "a dog on the sand"]
    denoiser = denoiser_of(apple)
    with torch.no_grad():
        expected = embed(denoiser.pipe, texts)["prompt_embeds"]
    assert torch.equal(denoiser.encode(apple.clip.tokens(texts))["prompt_embeds"], expected)


def test_prompts_of_the_name_are_edited_from_its_last_token_on(apple: Task) -> None:
    denoiser = denoiser_of(apple)
    read, instead = cross_attention.concept_pairs(apple, denoiser, ("a photo of {}",), "dog", 0)
    ids = apple.clip.tokens(["a photo of apple", "a photo of dog"])
    states = denoiser.encode(ids)["prompt_embeds"]
    first = int(apple.clip.ends(ids)[0]) - 1  # both names are one token
    assert torch.equal(read, states[0, first:]) and torch.equal(instead, states[1, first:])
    read, instead = cross_attention.concept_pairs(apple, denoiser, ("{}",), "", 0)
    states = denoiser.encode(apple.clip.tokens(["apple", ""]))["prompt_embeds"]
    assert torch.equal(read, states[0, 1:]) and torch.equal(instead, states[1, :-1])
    prompts = concept_prompts(apple, ("{}",), "", 3)
    assert prompts.asked.shape == prompts.instead.shape == (6, 32)
    assert bool((prompts.asked != prompts.instead).any(1).all())


def test_uce_weighs_what_it_retains_and_holds_the_rest_by_its_ridge(apple: Task) -> None:
    denoiser = denoiser_of(apple)
    method = UCE(
        prompts=("a photo of {}",), toward="dog", forget_captions=3, retain_captions=4,
        retain_weight=3.0, ridge=0.5,
    )  # fmt: skip
    read, instead = cross_attention.concept_pairs(apple, denoiser, method.prompts, "dog", 3)
    kept = cross_attention.retained_states(denoiser, apple.retain, 4).double().cpu()
    assert len(kept) == 4 * apple.retain.ids.shape[1]
    wanted, states = method.problem(apple)
    assert torch.equal(states[0], read) and torch.equal(states[1], instead)
    read, instead = read.double().cpu(), instead.double().cpu()
    retained = 3 * kept.T @ kept / len(kept)
    torch.testing.assert_close(wanted.own, read.T @ read / len(read) + retained)
    torch.testing.assert_close(wanted.toward, instead.T @ read / len(read) + retained)
    solved = method.solve(apple)
    for name, matrix in cross_attention.keys_and_values(denoiser.unet).items():
        torch.testing.assert_close(solved[name], (matrix @ edit(wanted, 0.5)).float())


def test_each_round_of_rece_erases_what_the_rounds_before_left(
    apple: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = torch.tensor([[1.0, 0.5], [0.2, 2.0], [1.0, -1.0]])
    instead = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
    w = {"w": torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=DOUBLE)}
    monkeypatch.setattr(UCE, "problem", lambda *_: (moments(read, instead), (read, instead)))
    monkeypatch.setattr(cross_attention, "keys_and_values", lambda _: w)
    solved = RECE(rounds=2, ridge=0.25, derived_ridge=0.3, derived_weight=0.5).solve(apple)["w"]

    gram, wanted = w["w"].T @ w["w"], moments(read, instead)
    transform = edit(wanted, 0.25)
    for _ in range(2):
        back = revival(gram, transform, 0.3)
        derived = torch.stack([back @ one for one in read.double()])
        wanted += moments(derived, instead).scaled(0.5)
        transform = edit(wanted, 0.25, transform)
    torch.testing.assert_close(solved, (w["w"] @ transform).float())


def test_a_revived_embedding_minimizes_its_sum_of_squares() -> None:
    w = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]], dtype=DOUBLE)
    transform = torch.tensor([[0.5, 0.2], [-0.4, 0.9]], dtype=DOUBLE)
    concept, read = torch.tensor([1.0, 2.0], dtype=DOUBLE), w @ transform
    strength = 0.3 * float((read.T @ read).diagonal().mean())
    revived = (revival(w.T @ w, transform, 0.3) @ concept).requires_grad_()
    loss = (read @ revived - w @ concept).square().sum() + strength * revived.square().sum()
    [slope] = torch.autograd.grad(loss, revived)
    assert float(slope.abs().max()) < 1e-12


def test_captions_are_edited_from_the_first_token_on_that_differs(
    apple: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, forget = denoiser_of(apple), apple.forget
    rows = mentioning(forget, 80).repeat(2)[:80]  # more than one batch
    monkeypatch.setattr(cross_attention, "mentioning", lambda *_: rows)
    read, instead = cross_attention.concept_pairs(apple, denoiser, (), "", 80)
    asked, wanted = [], []
    for row in rows.tolist():
        ids, removed = forget.ids[row : row + 1], forget.concept_removed_ids[row : row + 1]
        first = int((ids != removed).int().argmax())
        asked.append(denoiser.encode(ids)["prompt_embeds"][0, first:])
        states = denoiser.encode(removed)["prompt_embeds"][0]
        wanted.append(states[forget.source[row]][first:])
    torch.testing.assert_close(read, torch.cat(asked))
    torch.testing.assert_close(instead, torch.cat(wanted))


def test_attention_probabilities_are_those_of_the_unet(apple: Task) -> None:
    denoiser = denoiser_of(apple)
    prompts = denoiser.encode(apple.clip.tokens(["an apple"]))
    noisy = Noisy(torch.randn(1, *denoiser.latent_shape), torch.tensor([10]))
    maps = denoiser.attention(noisy, prompts)
    layers = [m for n, m in denoiser.unet.named_modules() if n.endswith(".attn2")]
    assert len(maps) == len(layers) > 1
    for probabilities in maps:
        assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)


def saved_bytes(loss: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """What the graph of a loss keeps for the backward pass beside parameters, and the loss."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()
    return sum(kept), result


def test_a_large_unet_keeps_fewer_activations_and_gives_the_same_gradients(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gradients, attention = [], [], []
    for large in (500_000_000, 0):
        monkeypatch.setattr(unet_module, "LARGE", large)
        denoiser = open_denoiser(tiny.folder, "fp32").with_copy()
        denoiser.unet.requires_grad_(True)
        random = torch.Generator().manual_seed(0)
        noisy = Noisy(
            torch.randn(2, *denoiser.latent_shape, generator=random), torch.tensor([9, 500])
        )
        states = torch.randn(2, 32, 32, generator=random).requires_grad_()
        prompts = {"prompt_embeds": states}
        size, loss = saved_bytes(lambda: denoiser.predict(noisy, prompts).square().mean())
        kept.append(size)
        gradients.append(torch.autograd.grad(loss, [states, *denoiser.unet.parameters()]))
        maps = denoiser.attention(noisy, prompts)
        attention.append(torch.autograd.grad(sum(m.square().sum() for m in maps), states)[0])
        assert denoiser.unet.is_gradient_checkpointing == (not large)
    assert kept[1] < 0.5 * kept[0]
    assert all(map(torch.equal, *gradients)) and torch.equal(*attention)


def test_stable_diffusion_1_keeps_30_gb_of_activations_and_2_gb_where_they_are_recomputed() -> None:
    """The figures of `LARGE` and of the results' "Time and memory", counted without any memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).requires_grad_(False)
        latents, states = torch.randn(8, 4, 64, 64), torch.randn(8, 77, 768, requires_grad=True)
        times = torch.zeros(8, dtype=torch.long)
    parameters = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}

    def gigabytes_kept() -> float:
        kept: dict[int, Tensor] = {}  # by storage: several operations may keep one

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            predicted = unet(latents, times, states).sample
        assert predicted.requires_grad
        sizes = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in parameters]
        return sum(sizes) / 1e9

    assert gigabytes_kept() == pytest.approx(30.2, abs=0.5)
    unet_module.recompute_if_large(unet)
    assert gigabytes_kept() == pytest.approx(2.4, abs=0.1)


def test_a_unet_is_watched_inside_alone_even_after_an_error() -> None:
    unet, seen = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU()), list[Any]()
    unet.is_gradient_checkpointing = False  # type: ignore[assignment]

    def read(module: Any, inputs: Any, keywords: Any) -> None:
        seen.append((module, inputs, keywords))

    with pytest.raises(KeyError), unet_module.watched(unet, "1", read):
        unet(torch.ones(1, 1))
        raise KeyError
    unet(torch.ones(1, 1))
    [(module, inputs, keywords)] = seen
    assert module is unet[1] and len(inputs) == 1 and not keywords


def test_the_metrics_are_1_before_and_fall_with_the_texts_influence(apple: Task) -> None:
    denoiser = denoiser_of(apple)
    original = predict_originals(denoiser, apple.forget, apple.retain)
    before = unet_metrics(denoiser, original)
    assert before.residual_concept_similarity == pytest.approx(1, abs=1e-4)
    assert before.retained_fidelity == pytest.approx(1, abs=1e-4)
    deaf = denoiser.with_copy()
    with torch.no_grad():
        for name, parameter in deaf.unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                parameter.zero_()
    after = unet_metrics(deaf, original)
    assert after.residual_concept_similarity != pytest.approx(1, abs=0.1)
    assert after.retained_fidelity < 0.9


def test_a_method_that_needs_images_of_the_concept_says_so(apple: Task) -> None:
    none = torch.zeros_like(apple.forget.mask)
    task = dataclasses.replace(apple, forget=dataclasses.replace(apple.forget, mask=none))
    with pytest.raises(DataError, match="learns from images of the concept, and there are none"):
        concept_images(task, 4)
    with pytest.raises(DataError, match="needs a Stable Diffusion"):
        denoiser_of(dataclasses.replace(apple, open_denoiser=None))


@pytest.mark.parametrize("prompt", ["a photo", "{0}", "{name}", "{", ""])
def test_a_prompt_without_a_place_for_the_name_is_refused(apple: Task, prompt: str) -> None:
    few_shot = FewShot(prompts=("{}", prompt), images=1)
    rule = re.escape(f"hyperparameters: needs {{}} for the name, got {prompt!r}")
    with pytest.raises(SettingError, match=rule):
        concept_prompts(apple, ["{}", prompt], "", 0)
    with pytest.raises(SettingError, match=rule):
        cross_attention.concept_pairs(apple, denoiser_of(apple), ["{}", prompt], "", 0)
    with pytest.raises(SettingError, match=rule):
        few_shot.prepare(apple)


def is_key_or_value(name: str) -> bool:
    return name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


QUICK: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "esd": ({"captions": 4, "rows": 2, "sampling_steps": 2}, lambda name: ".attn2." in name),
    "rece": ({"forget_captions": 8, "retain_captions": 8}, is_key_or_value),
    "concept-ablation": ({"images": 4, "rows": 2, "sampling_steps": 2}, is_key_or_value),
    "forget-me-not": (
        {"images": 2, "rows": 2, "trained": "cross-attention"},
        lambda name: ".attn2." in name,
    ),
    "few-shot": ({"images": 2, "rows": 2}, lambda name: ".mlp." in name or "layers.1.self" in name),
    "advunlearn": (
        {"captions": 4, "images": 4, "rows": 2, "attack_steps": 1},
        lambda name: ".layers." in name or "final_layer_norm" in name,
    ),
}


@pytest.mark.parametrize("method", QUICK)
def test_each_method_changes_its_parameters_and_no_other(tiny: Models, method: Any) -> None:
    hyperparameters, changes = QUICK[method]
    steps = {} if method == "rece" else {"steps": 2, "validate_every": 2}
    settings = UnlearnSettings(
        concepts=APPLE, method=method, hyperparameters=hyperparameters, forget_batch=4,
        retain_batch=4, mine_mentions=False, **steps,
    )  # fmt: skip
    run = Run(Path("runs/apple"))
    unlearn(settings, tiny, run)
    [module] = run.erasure().weights_sha256
    folder = run.erased if module == "text_encoder" else run.erased / module
    load: Any = load_text_encoder if module == "text_encoder" else load_unet
    before, after = (dict(load(f).named_parameters()) for f in (tiny.folder / module, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(changes(name) for name in changed)


@pytest.mark.parametrize("method", ["esd", "advunlearn"])
def test_an_interrupted_run_ends_with_the_same_weights(tiny: Models, method: Any) -> None:
    settings = UnlearnSettings(
        concepts=APPLE, method=method, hyperparameters=QUICK[method][0], steps=4,
        validate_every=2, forget_batch=4, retain_batch=4,
    )  # fmt: skip
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(settings, tiny, whole)

    def stop(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(settings, tiny, broken, stop)
    unlearn(settings, tiny, broken)
    [result] = broken.unlearned().encoders.values()
    assert result.resumed_at == 2
    assert whole.erasure().weights_sha256 == broken.erasure().weights_sha256


def test_uces_default_prompts_name_the_concept() -> None:
    assert all("{}" in prompt for prompt in UCE().prompts)
