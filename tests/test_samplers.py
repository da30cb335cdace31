"""Samplers and precision shape the images of both models alike, and are recorded with every image."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from erase_sd import runtime
from erase_sd.errors import SettingError
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models.choices import SAMPLERS
from erase_sd.models.pipeline import SCHEDULERS, open_pipeline
from erase_sd.models.presets import HUB, Models, resolve
from erase_sd.run import Run
from erase_sd.run.records import ImageRecord


@pytest.fixture
def prompts() -> list[Path]:
    Path("apple.txt").write_text("an apple\na dog\n")
    return [Path("apple.txt")]


def hashes(records: list[ImageRecord]) -> list[str]:
    return [record.sha256 for record in records]


def test_each_sampler_gives_images_of_its_own_and_is_recorded_with_them(
    tiny: Models, erased_run: Run, prompts: list[Path]
) -> None:
    passes = {}
    preset = replace(tiny, sampler="unipc")
    for sampler in SAMPLERS:
        chosen = None if sampler == preset.sampler else sampler
        settings = GenerateSettings(steps=3, sampler=chosen, dtype="fp32")
        records = passes[sampler] = generate(prompts, settings, preset, erased_run)
        assert {(r.variant, r.sampler, r.scheduler, r.dtype) for r in records} == {
            (variant, sampler, SCHEDULERS[sampler], "fp32") for variant in ("original", "erased")
        }
    keys = {r.batch_key for records in passes.values() for r in records}
    assert len(keys) == 2 * len(SAMPLERS)  # a batch of each variant, none shared
    assert len({h for records in passes.values() for h in hashes(records)}) == 4 * len(SAMPLERS)


def test_without_a_choice_the_models_own_scheduler_runs(
    tiny: Models, erased_run: Run, prompts: list[Path]
) -> None:
    own = generate(prompts, GenerateSettings(steps=3, dtype="fp32"), tiny, erased_run)
    assert {(r.sampler, r.scheduler) for r in own} == {(None, "DDIMScheduler")}
    ddim = GenerateSettings(steps=3, sampler="ddim", dtype="fp32")
    assert hashes(generate(prompts, ddim, tiny, erased_run)) == hashes(own)
    guided = generate(prompts, replace(ddim, guidance=2.0), tiny, erased_run)
    assert not set(hashes(guided)) & set(hashes(own))


def test_no_sampler_clips_latents_where_the_folders_own_scheduler_cannot(
    tiny: Models, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "euler"))
    EulerDiscreteScheduler(steps_offset=1).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for sampler in SAMPLERS:
        scheduler: Any = open_pipeline(folder, "fp32", sampler).scheduler
        latents = torch.full((1, 4, 2, 2), 3.0)
        scheduler.set_timesteps(2)
        for time in scheduler.timesteps:
            latents = scheduler.step(torch.zeros_like(latents), time, latents).prev_sample
        assert (
            latents.min() > 3
        )  # no noise is predicted, so the latents are scaled up, not clipped to 1


def test_the_preset_chooses_sampler_and_steps() -> None:
    assert (resolve().sampler, resolve().steps) == ("dpm++", 10)
    steps = {"sd35": 40, "flux1": 4}  # those of their model cards
    for name, models in HUB.items():
        assert (models.sampler, models.steps) == (None, steps.get(name, 50))


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(SettingError, match=r"sampler euler: needs one of ddim, unipc, dpm\+\+"):
        GenerateSettings(sampler="euler")  # type: ignore[arg-type]


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_on_a_cpu_with_bfloat16_instructions_only(
    native: bool, tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert runtime.precision() == ("bf16" if native else "fp32")
    assert runtime.precision("fp32") == "fp32"
    pipe = open_pipeline(tiny.folder)
    weight = pipe.unet.conv_in.weight
    assert weight.dtype == (torch.bfloat16 if native else torch.float32)
    assert weight.is_contiguous(memory_format=torch.channels_last) is native


def test_the_same_seed_gives_the_same_images_in_bf16(
    tiny: Models, erased_run: Run, prompts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerateSettings(steps=3, sampler="dpm++", dtype="bf16")
    first = generate(prompts, settings, tiny, erased_run)
    assert {record.dtype for record in first} == {"bf16"}
    for file in (erased_run.folder / "images").rglob("*.png"):
        file.unlink()
    monkeypatch.setenv("ERASE_SD_CACHE", "another-cache")  # so that nothing is reused
    assert hashes(generate(prompts, settings, tiny, erased_run)) == hashes(first)
