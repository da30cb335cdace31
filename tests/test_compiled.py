"""A compiled denoiser: which of its blocks are compiled, batches of one size, what is recorded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import PRETEND_CARD
from torch._inductor import config

from erase_sd.errors import ModelError
from erase_sd.generation import batch as batches
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models.compiled import compile_denoiser
from erase_sd.models.pipeline import open_pipeline
from erase_sd.models.presets import Models
from erase_sd.models.sampling import generate_batch
from erase_sd.run import Run
from erase_sd.run.differences import different_settings
from erase_sd.run.records import ImageRecord

pytestmark = pytest.mark.skipif(
    PRETEND_CARD in os.environ, reason="PyTorch cannot trace tensors of the pretend GPU"
)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced as for compilation but run PyTorch's own kernels: no waiting, the same bits."""

    def compile_eagerly(module: Any, **settings: Any) -> None:
        assert settings.pop("options") == {"deterministic": True}
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **settings)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)


@pytest.fixture
def prompts() -> list[Path]:
    Path("apple.txt").write_text("an apple\na dog\na cat\n")
    return [Path("apple.txt")]


@pytest.mark.usefixtures("without_kernels")
def test_blocks_with_attention_and_residual_blocks_are_compiled_whole(tiny: Models) -> None:
    pipe = open_pipeline(tiny.folder, "fp32")
    plain = generate_batch(pipe, ["an apple"] * 2, [1, 2], 2, 3.0)
    compile_denoiser(pipe)
    compiled = {
        name: type(block).__name__
        for name, block in pipe.unet.named_modules()
        if block._compiled_call_impl is not None
    }
    assert set(compiled.values()) == {"ResnetBlock2D", "BasicTransformerBlock"}
    convolutions = {name for name, _ in pipe.unet.named_modules() if name.endswith(".conv1")}
    assert convolutions == {f"{n}.conv1" for n, kind in compiled.items() if kind == "ResnetBlock2D"}
    same = generate_batch(pipe, ["an apple"] * 2, [1, 2], 2, 3.0)
    assert [image.tobytes() for image in same] == [image.tobytes() for image in plain]


@pytest.mark.usefixtures("without_kernels")
def test_compiled_images_come_in_batches_of_one_size_and_are_recorded_as_such(
    tiny: Models, erased_run: Run, prompts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def generate_counted(
        pipe: Any, texts: Sequence[str], seeds: Sequence[int], *others: Any
    ) -> Any:
        sizes.append((len(texts), len(seeds)))
        assert pipe.unet.mid_block.resnets[0]._compiled_call_impl
        return generate_batch(pipe, texts, seeds, *others)

    settings = GenerateSettings(steps=2, batch=2, dtype="fp32")
    plain = generate(prompts, settings, tiny, erased_run)
    stages = [erased_run.stages]
    monkeypatch.setattr(batches, "generate_batch", generate_counted)
    compiled = generate(prompts, replace(settings, compiled=True), tiny, erased_run)
    stages.append(erased_run.stages)
    assert sizes == [(2, 2)] * 4  # two batches of each variant
    # The images of full batches; a batch's size changes pixels.
    full = [n for n, record in enumerate(plain) if "-0002" not in record.file]
    assert len(full) == 4 and hashes(compiled, full) == hashes(plain, full)
    assert {r.batch_key for r in plain}.isdisjoint(r.batch_key for r in compiled)
    assert "compiled" not in (stages[0].generate.settings if stages[0].generate else {})
    assert different_settings((own, None) for own in stages) == ["compiled"]


def hashes(records: Sequence[ImageRecord], chosen: Sequence[int]) -> list[str]:
    return [records[n].sha256 for n in chosen]


def test_a_block_that_cannot_be_compiled_is_one_error(
    tiny: Models, erased_run: Run, prompts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no compiler")

    def compile_badly(module: Any, **_: Any) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=refuse)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_badly)
    settings = GenerateSettings(steps=2, dtype="fp32", compiled=True)
    with pytest.raises(ModelError, match=r"cannot be compiled \(.*no compiler.*\); leave it out"):
        generate(prompts, settings, tiny, erased_run)
    assert not erased_run.images()


def test_the_option_that_keeps_kernels_the_same_exists() -> None:
    assert isinstance(config.deterministic, bool)
