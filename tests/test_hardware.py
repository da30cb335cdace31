"""The benchmark of this machine, with tiny models, on the CPU and on a pretend GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from pretend_card import pretend_card
from torch import Tensor, nn

from erase_sd import runtime
from erase_sd.bench import image_speed
from erase_sd.bench.figures import MARK, Figures
from erase_sd.bench.hardware import Bench
from erase_sd.bench.image_speed import ImageSpeed
from erase_sd.models.clip import Clip

NAMES = ("synchronize", "reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved")


@pytest.fixture(autouse=True)
def answers() -> Iterator[None]:
    """What the benchmark asks of a GPU, if the tests run on one; nothing is compiled on it."""
    with ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(patch(f"torch.cuda.{name}", lambda: 2_000_000_000))
        about = SimpleNamespace(total_memory=80_000_000_000)
        stack.enter_context(patch("torch.cuda.get_device_properties", lambda _: about))
        stack.enter_context(patch("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3"))
        for name in ("compile_denoiser", "compile_blocks"):
            stack.enter_context(patch.object(image_speed, name, lambda _: None))
        stack.enter_context(patch.object(image_speed, "KERNELS", ("FLASH_ATTENTION",)))
        yield


@pytest.fixture
def card(answers: None) -> Iterator[None]:
    with pretend_card():
        yield


def test_every_kind_of_section_has_its_figures_on_a_card(
    card: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench("sd15", small=True, seconds=1000)
    images = ImageSpeed(bench.figures)
    for work in (
        bench.matmul, bench.closed_form, lambda: images.images((1,), "blocks"),
        images.critical_path, images.variants, images.decoding,
    ):  # fmt: skip
        bench.figures.section("one", work)
    assert not bench.figures.failed
    assert {
        "bf16 matrix product", "closed form", "images", "PNG", "generate loop",
        "a step of denoising, FLASH_ATTENTION", "a step of denoising, contiguous layout",
        "decoding, a batch at once, blocks compiled",
    } <= {row["measure"] for row in bench.rows}  # fmt: skip
    speed = next(row for row in bench.rows if row["measure"] == "images")
    assert {"batch", "steps", "TFLOP/s", "of matmul", "of H100"} <= speed.keys()
    sections = [row for row in bench.rows if row["measure"].startswith("section")]
    assert all(row["reserved"] == "2.00" and row["of the card"] == "2%" for row in sections)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(bench.rows) and all(line.startswith(MARK) for line in lines)


def test_both_encoders_of_sdxl_are_unlearned_on_a_card(card: None) -> None:
    bench = Bench("sdxl", small=True, seconds=1000)
    bench.run()
    epochs = [row for row in bench.rows if row["measure"].startswith("an epoch")]
    assert [row["encoder"] for row in epochs] == [1, 2]


def test_layers_in_cuda_graphs_train_the_same_weights() -> None:
    shapes = []

    def graphed(layers: nn.Module, sample: tuple[Tensor]) -> nn.Module:
        """As in PyTorch: one shape, tensors alone, and the module's own forward pass is replaced."""
        forward, shape = layers.forward, sample[0].shape
        assert not torch.is_autocast_cache_enabled()

        def replayed(states: Tensor) -> Tensor:
            assert states.shape == shape and states.requires_grad == sample[0].requires_grad
            shapes.append(shape)
            result: Tensor = forward(states)
            return result

        layers.forward = replayed
        return layers

    bench = Bench("sd15", small=True, seconds=1000)
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.make_graphed_callables", graphed))
        stack.enter_context(patch.object(Clip, "starts_slowly", True))
        # In bf16, the attention on a CPU takes a mask, and such layers are not replayed.
        stack.enter_context(patch.object(runtime, "dtype", lambda _: torch.float32))
        bench.graphs()
    steps, trainings = 3, 2
    assert shapes == 2 * steps * trainings * [torch.Size((6, 77, 64))]  # original and student
    differences = {
        row["layers"]: row["value"]
        for row in bench.rows
        if row["measure"] == "difference of the weights"
    }
    assert differences["replayed"] == 0 and differences["replayed, fused Adam"] < 1e-3


def test_a_section_that_fails_or_has_no_time_left_says_so(
    card: None, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = Figures(small=True, seconds=1000)

    def broken() -> None:
        raise ValueError("no kernel\nfor this")

    figures.section("first", broken)
    figures.section("second", broken, needs=2000)
    assert figures.failed == ["first"]
    failed, _, skipped = capsys.readouterr().out.splitlines()
    assert failed == "* first: FAILED, ValueError: no kernel"
    assert skipped.startswith("* second: SKIPPED, needs 2000 s")


def test_only_the_sections_that_are_named_run() -> None:
    done: list[str] = []
    figures = Figures(small=True, seconds=1000, only=("graphs", "decoding"))
    for name in ("unlearning", "unlearning with CUDA graphs", "variants of decoding"):
        figures.section(name, lambda name=name: done.append(name))  # type: ignore[misc]
    assert done == ["unlearning with CUDA graphs", "variants of decoding"]


def test_words_that_name_no_section_are_an_error() -> None:
    with pytest.raises(SystemExit, match="no section of sd15 on this device is named graphz"):
        Bench("sd15", small=True, seconds=1000, only=("graphz",)).run()


def test_a_bench_with_a_failed_section_exits_with_an_error(card: None) -> None:
    bench = Bench("sdxl", small=True, seconds=1000)
    with patch.object(bench, "unlearn", side_effect=RuntimeError("no memory")):
        with pytest.raises(SystemExit, match="failed: unlearning of both encoders"):
            bench.run()
