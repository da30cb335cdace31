"""Memory and precision: smaller batches after an allocation failed, and results in bfloat16."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from report_run import scored_run

from erase_sd.cli import job
from erase_sd.data.concept import Concept
from erase_sd.errors import ModelError, SettingError
from erase_sd.generation import batch
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.runtime import Precision
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

QUICK = UnlearnSettings(
    concepts=(Concept("apple"),), steps=4, validate_every=2, forget_batch=8, retain_batch=8,
    learning_rate=1e-2, retain_floor=0.0,
)  # fmt: skip


def test_out_of_memory_generates_all_variants_again_in_smaller_batches(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generate_batch = batch.generate_batch
    Path("apple.txt").write_text("".join(f"an apple number {i}\n" for i in range(4)))

    original: list[Any] = []

    def at_most_two(pipe: Any, prompts: list[str], *rest: Any) -> Any:
        original.append(pipe.text_encoder)
        if len(prompts) > 2 and pipe.text_encoder is not original[0]:
            raise torch.OutOfMemoryError
        return generate_batch(pipe, prompts, *rest)

    def hashes(size: int) -> list[str]:
        settings = GenerateSettings(steps=2, batch=size)
        images = generate([Path("apple.txt")], settings, tiny, erased_run)
        return [image.sha256 for image in images]

    expected = hashes(2)
    shutil.rmtree(erased_run.folder / "images")
    monkeypatch.setenv("ERASE_SD_CACHE", "another-cache")  # so that nothing is reused
    monkeypatch.setattr(batch, "generate_batch", at_most_two)
    assert hashes(4) == expected
    assert caplog.messages == ["out of memory; starting over with 2 images per batch"]
    assert erased_run.generated().batch == 2
    assert len(original) == 6  # after the erased model has run out, both begin again


def test_out_of_memory_continues_unlearning_with_smaller_batches(
    tiny: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loss = AnchoredCLIPErase.loss

    def at_most_four(method: Any, student: Any, batch: Any) -> Iterator[Any]:
        for part in loss(method, student, batch):
            yield part
            if len(batch.forget.ids) > 4:  # the first part has left its gradients
                raise torch.OutOfMemoryError

    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(AnchoredCLIPErase, "loss", at_most_four)
    run = Run(Path("runs/apple"))
    unlearn(QUICK, tiny, run)
    [message] = [m.getMessage() for m in caplog.records if m.levelno == logging.WARNING]
    assert "4 forget and 4 retain captions" in message
    assert run.unlearned().encoders["text_encoder"].batch_sizes == (4, 4)
    monkeypatch.setattr(AnchoredCLIPErase, "loss", never)
    with pytest.raises(ModelError, match="out of memory with the smallest batches"):
        unlearn(QUICK, tiny, Run(Path("runs/none")))


def test_a_step_that_runs_out_of_memory_is_repeated_with_what_the_last_one_left(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, seen = AnchoredCLIPErase.loss, []

    def counting(method: Any, student: Any, batch: Any) -> Iterator[Any]:
        steps = batch.memory.get("steps", torch.zeros(1))
        seen.append(int(steps))
        batch.memory["steps"] = steps + 1
        yield from loss(method, student, batch)
        if len(seen) == 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(AnchoredCLIPErase, "loss", counting)
    unlearn(QUICK, tiny, Run(Path("runs/apple")))
    assert seen == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_unlearning_in_bfloat16_stays_close_to_float32(tiny: Models, dtype: Precision) -> None:
    def held_out(name: str, settings: UnlearnSettings) -> dict[str, float]:
        run = Run(Path("runs") / name)
        unlearn(settings, tiny, run)
        return run.unlearned().encoders["text_encoder"].held_out

    measures = held_out("apple", dataclasses.replace(QUICK, dtype=dtype))
    exact = held_out("exact", dataclasses.replace(QUICK, dtype="fp32"))
    fidelity = "retained_fidelity"
    assert measures[fidelity] == pytest.approx(exact[fidelity], abs=0.05)
    assert (measures == exact) is (dtype == "fp32")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingError, match="dtype fp8: needs one of auto, fp32, bf16"):
        GenerateSettings(dtype="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_total_names_whose_memory_it_is(
    tiny: Models,
    device: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = scored_run(tiny, tmp_path)
    record = json.loads((run.folder / "run.json").read_text())
    record["stages"]["unlearn"]["peak_memory_mb"] = 4000
    record["stages"]["generate"]["peak_memory_mb"] = 9000
    (run.folder / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(job.runtime, "peak_memory", lambda: 2_000_000_000)
    job._finish(run.folder, 3, device)
    last = capsys.readouterr().out.splitlines()[-1]
    memory = "9.00 GB on the GPU" if device == "cuda" else "2.00 GB in the largest process"
    assert last == f"{run.folder}: 3 s in total, peak memory {memory}"
    assert run.record.total is not None
    assert run.record.total.peak_memory_mb == (9000 if device == "cuda" else 2000)
