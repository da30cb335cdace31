"""The closed-form projection: its regression against numpy, its layers, its run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from method_task import APPLE, apple_task
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from erase_sd.methods import caption_streams
from erase_sd.methods.base import Task
from erase_sd.methods.projection import Projection, regression
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn


@pytest.fixture(scope="module")
def apple(tiny: Models) -> Task:
    return apple_task(tiny)


def test_the_regression_is_least_squares_on_stacked_rows() -> None:
    rng = np.random.default_rng(0)
    keys, errors = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    k, d = keys.T @ keys, errors.T @ keys
    strength = 0.1 * np.trace(k) / 4
    stacked = np.vstack([keys, np.sqrt(strength) * np.eye(4)])
    by_numpy = np.linalg.lstsq(stacked, np.vstack([errors, np.zeros((4, 3))]), rcond=None)[0].T
    solution = regression(torch.from_numpy(k), torch.from_numpy(d), 0.1)
    np.testing.assert_allclose(solution.numpy(), by_numpy, atol=1e-12)


def test_inputs_of_the_retain_captions_alone_keep_their_output() -> None:
    # The forget input is the first axis; the retain inputs span the others and have no error.
    keys = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    errors = torch.tensor([[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    assert regression(keys, errors, 0.0).tolist() == [[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]]


def activations(model: CLIPModel, ids: Tensor, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The input of a layer's MLP output matrix and the layer's output, computed step by step."""
    with torch.no_grad():
        out = model.text_model(input_ids=ids, output_hidden_states=True)
        layer = model.text_model.encoder.layers[number]
        normed: dict[str, Tensor] = {}
        hook = layer.layer_norm2.register_forward_hook(lambda _, __, x: normed.update(x=x))
        model.text_model(input_ids=ids)
        hook.remove()
        key = layer.mlp.activation_fn(layer.mlp.fc1(normed["x"]))
    return key.double().numpy(), out.hidden_states[number + 1].double().numpy()


def test_a_layer_gets_the_least_squares_solution_computed_independently(apple: Task) -> None:
    solution = Projection(first_layer=1, captions=20, retain_weight=2.0, ridge=1e-3).solve(apple)
    [name] = solution
    assert name == "text_model.encoder.layers.1.mlp.fc2.weight"

    model = apple.clip.model
    stacked_keys, stacked_errors = [], []
    for pairs, weight in ((apple.forget, 1.0), (apple.retain, 2.0)):
        usable = pairs.mask.any(1) if weight == 1.0 else torch.ones(len(pairs), dtype=torch.bool)
        numbers = torch.nonzero(usable).flatten()
        rows = numbers[[n * len(numbers) // 20 for n in range(20)]]
        key, out = activations(model, pairs.ids[rows], 1)
        _, target = activations(model, pairs.concept_removed_ids[rows], 1)
        target = np.take_along_axis(target, pairs.source[rows].numpy()[:, :, None], axis=1)
        share = np.sqrt(weight / (key.shape[0] * key.shape[1]))
        stacked_keys.append(share * key.reshape(-1, key.shape[-1]))
        stacked_errors.append(share * (target - out).reshape(-1, out.shape[-1]))
    keys, errors = np.vstack(stacked_keys), np.vstack(stacked_errors)
    strength = np.sqrt(1e-3 * np.square(keys).sum() / keys.shape[1])
    padded = np.vstack([keys, strength * np.eye(keys.shape[1])])
    zeros = np.zeros((keys.shape[1], errors.shape[1]))
    change = np.linalg.lstsq(padded, np.vstack([errors, zeros]), rcond=None)[0].T
    before = model.get_parameter(name).detach().double().numpy()
    np.testing.assert_allclose(solution[name].double().numpy(), before + change, atol=1e-4)


def test_the_solution_approaches_the_concept_removed_captions_and_spares_the_others(
    apple: Task,
) -> None:
    before = {n: p.clone() for n, p in apple.clip.model.named_parameters()}
    solution = Projection(retain_weight=1.0).solve(apple)
    assert all(torch.equal(before[n], p) for n, p in apple.clip.model.named_parameters())
    assert set(solution) == {f"text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (0, 1)}

    mentions = apple.forget.mask.any(1)
    target = apple.clip.encode_texts(apple.forget.concept_removed_ids[mentions])[1]
    target = target.gather(1, apple.forget.source[mentions][:, :, None].expand_as(target))
    captions = apple.forget.ids[mentions], apple.retain.ids
    forget_before, retain_before = (apple.clip.encode_texts(ids)[1] for ids in captions)
    model = CLIPModel(apple.clip.model.config).eval()
    model.load_state_dict(before | dict(solution), strict=False)
    clip = dataclasses.replace(apple.clip, model=model)
    forget, retain = (clip.encode_texts(ids)[1] for ids in captions)
    error = (forget - target).square().mean()
    assert error < 0.5 * (forget_before - target).square().mean()
    variance = (retain_before - retain_before.mean(0)).square().mean()
    assert (retain - retain_before).square().mean() < 0.2 * variance


def test_projection_takes_no_step_and_logs_its_one_solution(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    settings = UnlearnSettings(
        concepts=APPLE, method="projection", hyperparameters={"captions": 20}
    )
    assert settings.learning_rate is None and settings.steps is None
    unlearn(settings, tiny, run)
    result = run.unlearned().encoders["text_encoder"]
    assert (result.stopped, result.steps) == ("solved", 0)
    [record] = run.training()
    assert (record.step, record.terms) == (0, {})
    assert record.retained_fidelity > 0.5
    base = load_file(tiny.folder / "text_encoder" / "model.safetensors")
    erased = load_file(run.erased / "model.safetensors")
    changed = {name for name, tensor in erased.items() if not torch.equal(tensor, base[name])}
    assert changed == {f"text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (0, 1)}


def test_the_solution_is_the_same_without_memory_for_the_layers_inputs(
    apple: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Projection().solve(apple)
    monkeypatch.setattr(caption_streams, "KEPT_BYTES", 0)
    torch.testing.assert_close(Projection().solve(apple), kept, rtol=0, atol=1e-4)  # rounding
