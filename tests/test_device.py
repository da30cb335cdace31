"""Every path on a GPU, by a pretend card: a tensor on the wrong device raises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pretend_card import CARD, pretend_card

from erase_sd import runtime
from erase_sd.data.concept import Concept
from erase_sd.methods.registry import METHODS, MethodName
from erase_sd.models import erased
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning import student
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`runtime.device()` is a pretend card."""
    save_file = (
        safetensors.torch.save_file
    )  # reads the memory of tensors, and a pretend card has none

    def save(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, *args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save_file", save)
    monkeypatch.setattr(runtime, "device", lambda: CARD)
    with pretend_card():
        yield


def test_tensors_on_two_devices_raise() -> None:
    with pretend_card():
        there, here = torch.ones(2, 2).to("cuda"), torch.ones(2, 2)
        assert there.device == CARD
        assert here.device.type == there.cpu().device.type == "cpu"
        assert float((there @ there).sum()) == 8
        with pytest.raises(RuntimeError, match="one device"):
            there @ here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def settings_of(name: MethodName, **changes: object) -> UnlearnSettings:
    return UnlearnSettings(
        concepts=(Concept("apple"),), method=name, steps=2, validate_every=1, forget_batch=4,
        retain_batch=4, min_steps=0, mine_mentions=True, dtype="fp32", **changes,
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_unlearns_on_a_card(name: MethodName, tiny: Models, card: None) -> None:
    unlearn(settings_of(name), tiny, Run(Path("run")))
    assert erased.load(Path("run"))


def test_training_on_a_card_uses_deterministic_kernels(card: None) -> None:
    with runtime.deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_interrupted_unlearning_resumes_on_a_card(
    tiny: Models, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what a method carries from step to step."""
    straight, broken, settings = Run(Path("a")), Run(Path("b")), settings_of("cliperase-hardened")
    unlearn(settings, tiny, straight)

    def interrupt(done: int, total: int, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(settings, tiny, broken, interrupt)
    unlearn(settings, tiny, broken)
    weights, resumed = (erased.load(run.folder).state_dict() for run in (straight, broken))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_large_tower_trains_alike_with_its_activations_computed_anew(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, anew = Run(Path("a")), Run(Path("b"))
    settings = settings_of("cliperase-anchored")
    unlearn(settings, tiny, plain)
    monkeypatch.setattr(student, "LARGE", 0)
    unlearn(settings, tiny, anew)
    weights, others = (erased.load(run.folder).state_dict() for run in (plain, anew))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
