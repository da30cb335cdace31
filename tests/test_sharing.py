"""Several processes in step leave what one leaves; a process that ends, ends all."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import side_by_side
from torch import nn
from unlearn_runs import KilledError, kill_at, short, weights

from erase_sd.attacks.settings import AttackSettings
from erase_sd.attacks.stage import attack
from erase_sd.attacks.target import Target
from erase_sd.detection.detector import DetectorAnswer
from erase_sd.errors import RunError
from erase_sd.evaluation import clip_measures, drift, embedders
from erase_sd.evaluation.stage import evaluate
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.mini.scenes import CLASSES
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.run.measurements import Detection
from erase_sd.scoring.stage import score
from erase_sd.sharing import any_of, each, from_first, group, place, together, writes
from erase_sd.sharing.group import summed
from erase_sd.sharing.rows import by_rows, sum_gradients
from erase_sd.unlearning.stage import unlearn

pytestmark = pytest.mark.forks


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads
    monkeypatch.setattr(group, "GRACE", 0.0)  # no launcher ends the others
    yield
    torch.set_num_threads(before)


def test_every_process_has_all_answers_and_whole_gradients() -> None:
    def work(number: int) -> None:
        asked: list[int] = []
        tensor = torch.tensor([float(number)])
        assert place() == (0, 1)
        for _ in range(2):  # the connection is made once
            with together():
                assert place() == (number, 4)
                answers = each(range(6), lambda n: (n * n, place()))
                assert answers == [(n * n, (0, 1)) for n in range(6)]
                assert from_first(lambda: asked.append(number) or number) == 0
                assert any_of(number == 3) and not any_of(flag=False)
                assert (summed(tensor).item(), tensor.item()) == (6, number)
                with together():
                    pass
                assert place() == (number, 4) and writes() == (number == 0)
            assert place() == (0, 1)
        assert asked == ([0, 0] if number == 0 else [])
        for rows in (5, 3):  # one process has two, or none
            gradients_are_whole(rows)

    assert side_by_side(4, work) == [0] * 4


def gradients_are_whole(rows: int) -> None:
    """Checks a loss over `rows` rows in step against the same one alone."""
    torch.manual_seed(0)
    layer, inputs, free = nn.Linear(4, 3), torch.randn(rows, 4), torch.randn(rows, 4)
    free.requires_grad_()

    def answers(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
        assert place() == (0, 1)
        return (layer(a * b),)

    def loss() -> torch.Tensor:
        [answer] = by_rows(answers, inputs, free)
        logits = answer @ answer.T  # couples the rows
        return nn.functional.cross_entropy(logits, torch.arange(rows))

    loss().backward()
    whole = [p.grad.clone() for p in (free, *layer.parameters()) if p.grad is not None]
    for parameter in (free, *layer.parameters()):
        parameter.grad = None
    with together():
        loss().backward()
        sum_gradients([nn.Parameter(torch.ones(1)), *layer.parameters()])  # one is not used
    shared = [p.grad for p in (free, *layer.parameters()) if p.grad is not None]
    torch.testing.assert_close(shared, whole)


def test_processes_enter_and_leave_together() -> None:
    def work(number: int) -> None:
        def last(name: str) -> None:
            if number == 0:
                time.sleep(0.1)
                Path(name).touch()

        for turn in "ab":  # the first time, they connect
            last(f"entered-{turn}")
            with together():
                assert Path(f"entered-{turn}").exists()
                last(f"left-{turn}")
            assert Path(f"left-{turn}").exists()

    assert side_by_side(3, work) == [0] * 3


def test_a_lost_process_is_one_line_after_the_launcher_had_time_to_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(group, "GRACE", 7.0)
    monkeypatch.setattr(group, "wait_for_signal", waited.append)

    def work(number: int) -> None:
        with pytest.raises(RunError, match=r"^another process has ended .*; the same command res"):
            with together():
                if number == 1:
                    os._exit(0)
                from_first(lambda: number)
                any_of(flag=True)
        assert waited == [7.0]

    assert side_by_side(2, work) == [0, 0]


@pytest.mark.parametrize("port", ["", "none", "1"])
def test_processes_that_cannot_connect_are_one_line(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "JOIN", datetime.timedelta(milliseconds=100))
    own = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="the processes cannot connect") as caught, together():
        pass
    assert "\n" not in str(caught.value) and place() == (0, 1)


@pytest.mark.parametrize(
    ("device", "processes", "backend"),
    [("cpu", 2, "gloo"), ("cuda:1", 2, "cpu:gloo,cuda:nccl"), ("cuda:1", 3, "gloo")],
)
def test_processes_connect_for_as_long_as_they_live_and_by_nccl_with_a_gpu_each(
    device: str, processes: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(group.runtime, "device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    module = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([("store", 1, 2)]))
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda *a, **o: calls.append((*a, o))
    )
    monkeypatch.setattr(group.atexit, "register", calls.append)
    group._join()
    *before, (name, options), _ = calls
    assert name == backend and before == ([torch.device(device)] if "nccl" in backend else [])
    assert (options["rank"], options["world_size"]) == (1, 2)
    assert options["timeout"].days >= 7


def test_batches_do_not_depend_on_the_number_of_processes() -> None:
    def work(number: int) -> None:
        def sizes(rows: torch.Tensor) -> tuple[torch.Tensor]:
            parts = torch.split(rows, 4)
            return (torch.cat([torch.full((len(part),), len(part)) for part in parts]),)

        with together():
            [batch] = by_rows(sizes, torch.zeros(10), unit=4)
        assert batch.tolist() == [4] * 8 + [2] * 2

    assert side_by_side(2, work) == [0, 0] and side_by_side(5, work) == [0] * 5


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        ((2, 4), {}),
        ((3,), {"method": "cliperase", "towers": "both", "learning_rate": 1e-3}),
        ((4,), {"method": "hirm"}),  # three prompts
        pytest.param(
            (3,), {"method": "cliperase-hardened", "hyperparameters": {"pool": 4, "rows": 3, "captions": 8}},
            marks=pytest.mark.slow,
        ),
        pytest.param((3,), {"method": "forget-me-not", "learning_rate": 1e-3}, marks=pytest.mark.slow),
        pytest.param((3,), {"method": "esd", "learning_rate": 1e-3}, marks=pytest.mark.slow),
    ],
    ids=["hidden states", "contrastive, both towers", "few rows", "free embeddings", "attention", "U-Net"],
)  # fmt: skip
def test_unlearning_does_not_depend_on_the_number_of_processes(
    counts: Sequence[int], changes: dict[str, Any], tiny: Models
) -> None:
    settings = short(dtype="fp32", **changes)
    unlearn(settings, tiny, Run(Path("runs/alone")))
    alone = weights(Run(Path("runs/alone")))
    for count in counts:
        run = Run(Path(f"runs/by-{count}"))
        shutil.rmtree("cache")  # the image features are shared out too
        assert side_by_side(count, lambda _: unlearn(settings, tiny, run)) == [0] * count
        assert max(float((t - alone[n]).abs().max()) for n, t in weights(run).items()) < 1e-5
        assert not list(run.folder.glob("checkpoint*"))


ATTACK = AttackSettings(
    attacks=("embeddings", "relearning"), images=2, steps=1,
    budgets={
        "embeddings.counts": 1, "embeddings.steps": 2, "embeddings.captions": 2,
        "relearning.steps": 1, "relearning.images": 2,
    },
)  # fmt: skip


def known_detections(_: Path, images: Sequence[Path], *__: object) -> DetectorAnswer:
    """Stands in for `detect`: an apple, as probable as the image's name says."""
    rows = [
        (Detection(name="apple", probability=int(p.stem[-1]) / 3, box=(0, 0, 9, 9)),)
        for p in images
    ]
    return DetectorAnswer(names=tuple(CLASSES), size=64, kind="known answers", detections=rows)


def test_an_interrupted_unlearning_resumes_with_another_number_of_processes(tiny: Models) -> None:
    settings, run = short(dtype="fp32"), Run(Path("runs/apple"))
    unlearn(settings, tiny, Run(Path("runs/alone")))

    def interrupted(number: int) -> None:
        progress = kill_at(4) if number == 0 else None
        with pytest.raises((KilledError, RunError)):  # the other loses its connection
            unlearn(settings, tiny, run, progress)

    assert side_by_side(2, interrupted) == [0, 0]
    assert run.status("unlearn") == "running"
    assert side_by_side(3, lambda _: unlearn(settings, tiny, run)) == [0] * 3
    assert run.unlearned().encoders["text_encoder"].resumed_at == 2
    alone = weights(Run(Path("runs/alone")))
    assert max(float((t - alone[n]).abs().max()) for n, t in weights(run).items()) < 1e-5


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_later_stages_leave_the_same_files_whatever_the_number_of_processes(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Target, "probabilities", lambda _, files: [0.9 * (i % 2) for i in range(len(files))]
    )
    monkeypatch.setattr("erase_sd.scoring.detections.detect", known_detections)
    monkeypatch.setattr("erase_sd.scoring.detections.CHUNK", 3)
    for module in (embedders, clip_measures, drift):
        monkeypatch.setattr(module, "EMBEDDING_BATCH", 8)
    Path("apple.txt").write_text("an apple\na dog\nan orange\n")
    first = Run(Path("runs/apple"))
    unlearn(short(steps=2), tiny, first)
    generate([Path("apple.txt")], GenerateSettings(steps=1, batch=2), tiny, first)

    def stages(run: Run) -> None:
        score(run, tiny)
        evaluate(run, tiny)
        attack(run, tiny, ATTACK)

    left: dict[int, dict[str, bytes]] = {}
    for count in (1, 3):
        run = Run(Path(f"runs/by-{count}/apple"))
        shutil.copytree(first.folder, run.folder)
        shutil.rmtree("cache")
        assert side_by_side(count, lambda _: stages(run)) == [0] * count
        assert not list(run.folder.glob(".attacks/*"))
        left[count] = contents(run.folder)
        for name in ("run.json", "attacks.json", "attacks.md"):  # hold seconds
            del left[count][name]
        record = run.attacks()
        assert record and len(record.rows) > 2
        rows = [dataclasses.replace(row, seconds=0) for row in record.rows]
        left[count]["rows"] = repr(rows).encode()
    assert left[1].keys() == left[3].keys()
    assert left[1] == left[3]
    assert {"scores.json", "detections.jsonl", "evaluation.json"} < left[1].keys()
