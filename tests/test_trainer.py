"""Training on tiny real models: resuming, rolling back, stages, never NaN."""

from __future__ import annotations

import dataclasses
import math
from collections import ChainMap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from unlearn_runs import KilledError, kill_at, original_weights, same, short, weights

from erase_sd import runtime
from erase_sd.data.pair import Split
from erase_sd.errors import DivergedError, RunError
from erase_sd.methods.base import Batch, Student, Task
from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase
from erase_sd.methods.lipschitz import Lipschitz
from erase_sd.methods.projection import Projection
from erase_sd.mini import WEIGHTS
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.run.records import Origin
from erase_sd.unlearning import trainer
from erase_sd.unlearning.checkpoint import identity_of
from erase_sd.unlearning.metrics import ErasureMetrics
from erase_sd.unlearning.session import Session
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn
from erase_sd.unlearning.student import ClipStudent
from erase_sd.unlearning.trainer import Trainer

SMALL_LIPSCHITZ = {"images": 4, "iterations": 40, "batch": 2, "copies": 1}


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_resumed_run_ends_with_the_same_weights(tiny: Models, step: int) -> None:
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(short(), tiny, whole)
    with pytest.raises(KilledError):
        unlearn(short(), tiny, broken, kill_at(step))
    assert broken.status("unlearn") != "done"
    assert not broken.erased.exists()
    unlearn(short(), tiny, broken)
    assert same(weights(whole), weights(broken))
    records = [
        [dataclasses.replace(r, seconds_per_step=0, peak_memory_mb=0) for r in run.training()]
        for run in (whole, broken)
    ]
    assert records[0] == records[1]
    assert (
        broken.unlearned().encoders["text_encoder"].resumed_at == (step - 1) // 2 * 2
    )  # killed before validating
    assert not (broken.folder / "checkpoint.safetensors").exists()


def test_a_run_does_not_resume_with_another_version_of_a_library(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Path("runs/a"))
    with pytest.raises(KilledError):
        unlearn(short(), tiny, run, kill_at(5))
    other = runtime.versions() | {"transformers": "0.0"}
    monkeypatch.setattr(runtime, "versions", lambda: other)
    with pytest.raises(RunError, match=r'written with version of transformers .* now it is "0\.0"'):
        unlearn(short(), tiny, run)


def test_a_checkpoint_is_of_its_data_weights_device_and_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin = Origin(model="m", clip=("c",), data="d", images="i", missing_images=1)

    def identity(**changes: Any) -> set[tuple[str, str]]:
        values = identity_of(short(dtype="auto"), dataclasses.replace(origin, **changes))
        return {(name, str(value)) for name, value in values.items()}

    before = identity()
    for field in dataclasses.fields(Origin):
        [(name, value)] = identity(**{field.name: "other"}) - before
        assert (name, value) == (field.name, "other")
    monkeypatch.setattr(UnlearnSettings, "precision", "other")  # where auto is another one
    monkeypatch.setattr(runtime, "device", lambda: torch.device("meta"))
    assert identity() - before == {("dtype", "other"), ("device", "meta")}


@pytest.mark.parametrize(
    ("method", "hyperparameters"),
    [("lipschitz", SMALL_LIPSCHITZ), ("emmn", {"images": 4, "noise_steps": 2})],
)
def test_a_resumed_run_of_a_method_that_prepares_ends_with_the_same_weights(
    tiny: Models,
    method: str,
    hyperparameters: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Rolled back at the first validation, accepted in the second stage, rolled back there.
    monkeypatch.setattr(Lipschitz, "residual", lambda method, student: 1 / (2 + method.stage))
    models = dataclasses.replace(tiny, model=WEIGHTS / "sd", clips=(WEIGHTS / "clip",))
    settings = short(
        method=method, hyperparameters=hyperparameters, forget_batch=4, retain_batch=4,
        learning_rate=1e-4, retain_floor=None,
    )  # fmt: skip
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(settings, models, whole)
    with pytest.raises(KilledError):
        unlearn(settings, models, broken, kill_at(3))
    unlearn(settings, models, broken)
    assert same(weights(whole), weights(broken))
    assert not same(weights(whole), original_weights(models))


def test_a_damaged_checkpoint_is_named(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    with pytest.raises(KilledError):
        unlearn(short(), tiny, run, kill_at(3))
    path = run.folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: damaged .*; delete it"):
        unlearn(short(), tiny, run)


def test_a_validation_below_the_retain_floor_is_rolled_back(
    tiny: Models, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(retain_floor=1.0), tiny, run)  # every change lowers the fidelity
    assert [record.rolled_back for record in run.training()] == [True, True, True]
    assert "every validation was rolled back: the weights are still the original's" in caplog.text
    assert same(original_weights(tiny), weights(run))


def test_a_roll_back_halves_the_learning_rate_and_clears_the_optimizer(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, moments = [], []
    take_step = Trainer._take_step

    def watch(training: Trainer) -> dict[str, float]:
        moments.append(bool(training.optimizer.state))
        terms = take_step(training)
        rates.append(training.optimizer.param_groups[0]["lr"])
        return terms

    monkeypatch.setattr(Trainer, "_take_step", watch)
    monkeypatch.setattr(trainer, "WARM_UP", 4)  # the rate rises for four of the six steps
    unlearn(short(retain_floor=1.0), tiny, Run(Path("runs/a")))  # all three validations break it
    assert rates == pytest.approx(
        [
            1e-2
            / 2 ** (step // 2)
            * min(1, (step + 1) / 4)
            * (1 + math.cos(math.pi * step / 6))
            / 2
            for step in range(6)
        ]
    )
    assert moments == [False, True] * 3


def test_the_forget_threshold_ends_training_from_min_steps_on(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased = ErasureMetrics(residual_concept_similarity=0.1, retained_fidelity=1.0)
    monkeypatch.setattr(Session, "measure", lambda session, split: erased)
    run = Run(Path("runs/a"))
    # Validated at steps 2, 4 and 6; measures that reach their bounds suffice.
    unlearn(short(forget_threshold=0.1, retain_floor=1.0, min_steps=3), tiny, run)
    [result] = run.unlearned().encoders.values()
    assert (result.steps, result.stopped) == (4, "thresholds")


def test_without_a_floor_nothing_is_rolled_back(tiny: Models) -> None:
    run = Run(Path("runs/a"))
    unlearn(short(method="ga", retain_floor=None, learning_rate=1.0), tiny, run)
    records = run.training()
    assert [record.step for record in records] == [2, 4, 6]
    assert not any(record.rolled_back for record in records)
    assert records[-1].retained_fidelity < 0.5


def test_a_residual_that_does_not_fall_begins_the_next_stage(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lipschitz, "residual", lambda method, student: 0.5)
    run = Run(Path("runs/a"))
    unlearn(short(method="lipschitz", hyperparameters=SMALL_LIPSCHITZ), tiny, run)
    assert [(r.rolled_back, r.schedule_stage, r.schedule_residual) for r in run.training()] == [
        (True, 0, 0.5), (True, 1, 0.5), (True, 2, 0.5),
    ]  # fmt: skip
    assert same(weights(run), original_weights(tiny))


def test_a_run_stops_after_the_last_stage(tiny: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Lipschitz.stages
    monkeypatch.setattr(Lipschitz, "stages", lambda method: stages(method)[:2])
    monkeypatch.setattr(Lipschitz, "residual", lambda method, student: 0.5)
    run = Run(Path("runs/a"))
    unlearn(short(method="lipschitz", hyperparameters=SMALL_LIPSCHITZ), tiny, run)
    result = run.unlearned().encoders["text_encoder"]
    assert (result.stopped, result.steps) == ("schedule", 4)


def test_a_residual_of_zero_ends_training(tiny: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    residuals = iter((0.5, 0.2, 0.0))
    monkeypatch.setattr(Lipschitz, "residual", lambda method, student: next(residuals))
    run = Run(Path("runs/a"))
    settings = short(method="lipschitz", retain_floor=None, hyperparameters=SMALL_LIPSCHITZ)
    unlearn(settings, tiny, run)
    result = run.unlearned().encoders["text_encoder"]
    assert (result.stopped, result.steps) == ("thresholds", 4)


def test_a_staged_method_keeps_to_the_retain_floor(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lipschitz, "residual", lambda method, student: 1 / (2 + method.stage))
    run = Run(Path("runs/a"))
    settings = short(method="lipschitz", retain_floor=1.0, hyperparameters=SMALL_LIPSCHITZ)
    unlearn(settings, tiny, run)
    records = run.training()
    assert records and all(record.rolled_back for record in records)


def test_a_loss_that_is_nan_stops_and_saves_nothing(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(self: object, student: object, batch: object) -> dict[str, Tensor]:
        return {"anchor": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(AnchoredCLIPErase, "loss", nan)
    run = Run(Path("runs/a"))
    with pytest.raises(DivergedError, match=r"at step 1 .*before any validation was accepted"):
        unlearn(short(), tiny, run)
    assert not run.erased.exists()


def test_a_run_that_diverges_later_keeps_the_last_accepted_weights(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short_run = Run(Path("runs/short"))
    loss = AnchoredCLIPErase.loss

    def late_nan(self: AnchoredCLIPErase, student: Student, batch: Batch) -> dict[str, Tensor]:
        late = batch.done >= 0.5  # from step 4 of 6 on
        terms = dict(ChainMap(*loss(self, student, batch)))
        return terms | ({"bad": torch.tensor(math.nan, device=runtime.device())} if late else {})

    with pytest.raises(KilledError):
        unlearn(short(learning_rate=1e-3), tiny, short_run, kill_at(3))
    accepted = load_file(short_run.folder / "checkpoint.safetensors")  # of step 2
    monkeypatch.setattr(AnchoredCLIPErase, "loss", late_nan)
    run = Run(Path("runs/a"))
    unlearn(short(learning_rate=1e-3), tiny, run)
    assert run.status("unlearn") == "done"
    assert run.unlearned().encoders["text_encoder"].stopped == "diverged"
    assert "diverged at step 4 (loss nan); the weights of step 2 are kept" in caplog.text
    for name, tensor in weights(run).items():
        parameter = f"text_model.{name.removeprefix('text_model.')}"
        assert torch.equal(tensor, accepted[f"accepted.{parameter}"])


def test_metrics_that_are_nan_end_training_like_a_loss_that_is(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure, validations = Session.measure, iter((False, True))

    def late_nan(session: Session, split: Split) -> ErasureMetrics:
        metrics = measure(session, split)
        if split == "validation" and next(validations):
            return dataclasses.replace(metrics, retained_fidelity=math.nan)
        return metrics

    monkeypatch.setattr(Session, "measure", late_nan)
    run = Run(Path("runs/a"))
    unlearn(short(learning_rate=1e-3), tiny, run)
    assert run.unlearned().encoders["text_encoder"].stopped == "diverged"
    assert "diverged at step 4 (validation metrics are not finite); the weights of" in caplog.text


def test_a_closed_form_solution_that_is_nan_is_not_saved(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = Projection.solve

    def nan(self: Projection, task: Task) -> dict[str, Tensor]:
        return {name: tensor * math.nan for name, tensor in solve(self, task).items()}

    monkeypatch.setattr(Projection, "solve", nan)
    run = Run(Path("runs/a"))
    with pytest.raises(DivergedError, match="solution is not finite; nothing is saved"):
        unlearn(short(method="projection"), tiny, run)
    assert not run.erased.exists()


@pytest.mark.parametrize("towers", ["text", "both"])
def test_projections_and_temperature_are_frozen(
    tiny: Models, towers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters: dict[str, Tensor] = {}
    copy_weights = ClipStudent.weights

    def watch(student: ClipStudent) -> dict[str, Tensor]:
        model = student.clip.model
        parameters.update({n: p.detach().cpu().clone() for n, p in model.named_parameters()})
        return copy_weights(student)

    monkeypatch.setattr(ClipStudent, "weights", watch)
    unlearn(short(method="cliperase", towers=towers), tiny, Run(Path("runs/a")))
    base = load_file(tiny.clip_folder(0) / "model.safetensors")
    for name in ("text_projection.weight", "visual_projection.weight", "logit_scale"):
        assert torch.equal(parameters[name], base[name])
    vision = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(parameters[vision], base[vision]) == (towers == "text")


@pytest.mark.parametrize("method", ["cliperase-anchored", "cliperase"])
def test_a_step_reads_no_single_number_from_the_device(
    tiny: Models, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, each time waits until all that was started before is finished; token ids are on the CPU."""
    reads: list[int] = []
    backward = Trainer._backward

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            read = func is torch.ops.aten._local_scalar_dense.default
            reads[-1] += read and args[0].dtype != torch.long
            return func(*args, **(kwargs or {}))

    def counted(self: Trainer) -> dict[str, float]:
        reads.append(0)
        with Reads():
            return backward(self)

    monkeypatch.setattr(Trainer, "_backward", counted)
    unlearn(short(method=method, mine_mentions=False, dtype="fp32"), tiny, Run(Path("runs/a")))
    assert reads[1:] == [0] * 5
