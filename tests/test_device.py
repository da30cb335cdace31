"""Unlearning, images, attacks and measures on a GPU, by a pretend card: a tensor on the wrong device raises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blip_model import make_blip
from labelled_data import write_class_folders
from pretend_card import CARD, pretend_card
from test_attacks import SMALL, recorded_run  # noqa: F401  (a fixture)
from unlearn_runs import few

from erase_sd import runtime
from erase_sd.attacks.settings import AttackSettings
from erase_sd.attacks.stage import attack
from erase_sd.data.concept import Concept
from erase_sd.evaluation.explain.stage import explain
from erase_sd.evaluation.stage import evaluate
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.methods.registry import METHODS, MethodName
from erase_sd.models import erased
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models, resolve
from erase_sd.run import Run
from erase_sd.runtime import device  # itself, on the pretend card too
from erase_sd.unlearning import student
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn


@pytest.fixture
def card() -> Iterator[None]:
    """The package's device is a pretend card."""
    with pretend_card():
        yield


@pytest.mark.forks
def test_a_process_that_had_a_pretend_card_can_fork_and_compute_gradients() -> None:
    code = (
        "import os, torch\nfrom pretend_card import pretend_card\n"
        "with pretend_card():\n"
        "    torch.ones(1, device='cuda', requires_grad=True).backward()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    torch.ones(1, requires_grad=True).backward()\n"
        "    os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": paths})


def test_tensors_on_two_devices_raise() -> None:
    with pretend_card():
        there, here = torch.ones(2, 2).to("cuda"), torch.ones(2, 2)
        assert there.device == CARD
        assert here.device.type == there.cpu().device.type == "cpu"
        assert float((there @ there).sum()) == 8
        index, scalar = torch.tensor([0]), torch.tensor(1.0)
        there[index] = scalar
        assert (there + scalar)[index].device == index.type_as(there).device == CARD
        for refused in (
            lambda: there @ here,
            lambda: here[index.to("cuda")],
            lambda: there.index_put_((index,), here[:1]),
            lambda: torch.stack([there[0, 0], scalar]),
            lambda: scalar.add_(there[0, 0]),
        ):
            with pytest.raises(RuntimeError, match="one device"):
                refused()
        with pytest.raises(RuntimeError, match="cuda generator"):
            torch.randn(2, device="cuda", generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def settings_of(name: MethodName, steps: int = 2, validate_every: int = 2) -> UnlearnSettings:
    return UnlearnSettings(
        concepts=(Concept("apple"),), method=name, steps=steps, validate_every=validate_every, forget_batch=4,
        retain_batch=4, min_steps=0, mine_mentions=True, dtype="fp32",
        hyperparameters=few(name),
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_unlearns_on_a_card(name: MethodName, tiny: Models, card: None) -> None:
    unlearn(settings_of(name), tiny, Run(Path("run")))
    assert erased.load_all(Path("run"))


@pytest.mark.parametrize("name", ["emmn", "kl", "npo"])
@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_classes_are_unlearned_from_a_clip_or_blip_alone_on_a_card(
    name: MethodName, kind: str, tiny: Models, tmp_path: Path, card: None
) -> None:
    write_class_folders(tmp_path / "data", {"apple": 8, "dog": 8, "chair": 8})
    (tmp_path / "blip").mkdir()
    clip = tiny.clip_folder(0) if kind == "clip" else make_blip(tmp_path / "blip")
    run = Run(Path("run"))
    unlearn(settings_of(name), resolve(clip=clip, data=tmp_path / "data"), run)
    assert (run.erased / "model.safetensors").is_file()


@pytest.mark.parametrize("began", [True, False])
def test_only_a_program_that_used_cuda_before_has_warnings_instead_of_errors(
    began: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS, which is then set up for speed, would otherwise end all training."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what device() sets is undone
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: began)
    assert device() == torch.device("cuda")
    with runtime.deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is began
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_interrupted_unlearning_resumes_on_a_card(tiny: Models, card: None) -> None:
    """Also with what a method carries from step to step: the adversaries, from its second step on."""
    straight, broken = Run(Path("a")), Run(Path("b"))
    settings = settings_of("cliperase-hardened", steps=3, validate_every=1)
    unlearn(settings, tiny, straight)

    def interrupt(done: int, total: int, note: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(settings, tiny, broken, interrupt)
    unlearn(settings, tiny, broken)
    weights, resumed = (erased.load(run.folder).state_dict() for run in (straight, broken))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_images_are_generated_on_a_card_with_the_same_bytes_every_time(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, card: None
) -> None:
    prompts = Path("apple.txt")
    prompts.write_text("an apple\na dog\n")
    files: list[dict[str, bytes]] = []
    for cache in ("one", "another"):  # so that nothing is reused
        monkeypatch.setenv("ERASE_SD_CACHE", cache)
        images = generate([prompts], GenerateSettings(steps=2), tiny, erased_run)
        files.append({image.file: erased_run.image_bytes(image) for image in images})
        shutil.rmtree(erased_run.folder / "images")
        (erased_run.folder / "images.jsonl").unlink()
    assert len(files[0]) == 4 and files[0] == files[1]


@pytest.mark.parametrize("name", ["unlearndiffatk", "textual-inversion"])
def test_an_attack_takes_gradients_through_unet_and_encoder_on_a_card(
    name: str,
    tiny: Models,
    recorded_run: Run,  # noqa: F811
    card: None,
) -> None:
    budgets = {budget: value for budget, value in SMALL.items() if budget.startswith(f"{name}.")}
    settings = AttackSettings(attacks=(name,), images=2, steps=1, budgets=budgets)
    assert name in {row.attack for row in attack(recorded_run, tiny, settings).rows}


def test_a_run_is_evaluated_and_explained_on_a_card(tiny: Models, card: None) -> None:
    run = Run(Path("runs/apple"))
    unlearn(settings_of("cliperase-anchored"), tiny, run)
    rows = evaluate(run, tiny).measurements
    assert {row.variant for row in rows} == {"original", "erased"}
    assert all(figure.is_file() for figure in explain(run, tiny))


def test_a_large_tower_trains_alike_with_its_activations_computed_anew(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A large tower encodes the two sets one after the other, which rounds in another way.
    monkeypatch.setattr(Clip, "starts_slowly", False)
    plain, anew = Run(Path("a")), Run(Path("b"))
    settings = settings_of("cliperase-anchored")
    unlearn(settings, tiny, plain)
    monkeypatch.setattr(student, "LARGE", 0)
    unlearn(settings, tiny, anew)
    weights, others = (erased.load(run.folder).state_dict() for run in (plain, anew))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
