"""Several processes in step leave what one leaves; a process that ends, ends all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import side_by_side
from torch import nn
from unlearn_runs import short, weights

from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.sharing import any_of, each, from_first, place, together
from erase_sd.sharing.rows import by_rows, sum_gradients
from erase_sd.unlearning.stage import unlearn

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads
    yield
    torch.set_num_threads(before)


def test_every_process_has_all_answers_and_whole_gradients() -> None:
    def work(number: int) -> None:
        torch.manual_seed(0)
        layer, rows, free = nn.Linear(4, 3), torch.randn(5, 4), torch.randn(5, 4)
        free.requires_grad_()

        def loss() -> torch.Tensor:
            [answer] = by_rows(lambda a, b: (layer(a * b),), rows, free)
            logits = answer @ answer.T  # couples the rows
            return nn.functional.cross_entropy(logits, torch.arange(5))

        loss().backward()
        whole = [p.grad.clone() for p in (free, *layer.parameters()) if p.grad is not None]
        for parameter in (free, *layer.parameters()):
            parameter.grad = None
        assert place() == (0, 1)
        with together():
            assert place() == (number, 4)
            assert each(range(6), lambda n: n * n) == [0, 1, 4, 9, 16, 25]
            assert from_first(lambda: number) == 0
            assert any_of(number == 3) and not any_of(flag=False)
            loss().backward()
            sum_gradients(layer.parameters())
        shared = [p.grad for p in (free, *layer.parameters()) if p.grad is not None]
        torch.testing.assert_close(shared, whole)

    assert side_by_side(4, work) == [0] * 4


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
    "changes",
    [
        {},
        {"method": "cliperase", "learning_rate": 1e-3},
        {"method": "cliperase", "towers": "both", "learning_rate": 1e-3},
        {"method": "hirm"},  # a batch of three prompts
    ],
    ids=["hidden states", "contrastive", "both towers", "three rows"],
)
def test_unlearning_does_not_depend_on_the_number_of_processes(
    changes: dict[str, Any], tiny: Models
) -> None:
    settings = short(dtype="fp32", **changes)
    unlearn(settings, tiny, Run(Path("runs/alone")))
    alone = weights(Run(Path("runs/alone")))
    for count in (2, 4):
        run = Run(Path(f"runs/by-{count}"))
        shutil.rmtree("cache")  # the image features are shared out too
        assert side_by_side(count, lambda _: unlearn(settings, tiny, run)) == [0] * count
        worst = {n: float((t - alone[n]).abs().max()) for n, t in weights(run).items()}
        print(count, sorted(worst.items(), key=lambda i: -i[1])[:4])
        assert max(worst.values()) < 1e-5
