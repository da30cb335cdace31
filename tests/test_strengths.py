"""The curve over a LoRA's strengths begins at the original's rates, and is compared with the erased."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_lora_unet import changed
from test_unet_erasure import erase

import erase_sd
from erase_sd.errors import RunError
from erase_sd.files import write_json
from erase_sd.models import lora_export
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import strengths
from erase_sd.scoring.rates import rate_of


@pytest.fixture
def exported(tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A scored run of one prompt, and its LoRA; the change is far from what a low rank can carry."""
    Path("prompts").mkdir()
    Path("prompts/apple.txt").write_text("an apple and a dog on a table\n")
    models = {"model": str(tiny.model), "clip": [str(tiny.clips[0])],
              "detector": str(tiny.detector)}  # fmt: skip
    erased_run.update(models=models)
    erase_sd.generate("prompts/apple.txt", run="apple", steps=1, images_per_prompt=2)
    erase_sd.score("apple")
    monkeypatch.setattr(lora_export, "MAX_RESIDUAL", 9.0)
    export(erased_run, tiny, "lora")
    return erased_run


def test_at_strength_zero_the_rates_are_the_originals(
    exported: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strengths, "STRENGTHS", (0.0, 1.0))
    monkeypatch.setattr(sys, "argv", ["strengths", "apple"])
    strengths.main()
    lines = capsys.readouterr().out.splitlines()
    rates = {(r.group, r.class_name): r for r in exported.scores().rates}
    target = rates["target", None]
    assert lines[0] == (
        f"strength 0, apple: {100 * target.original.value:.1f} % of 2; the erased model "
        f"{100 * target.erased.value:.1f} %"
    )
    assert sum(line.startswith("strength 1, ") for line in lines) == len(rates)
    picture = exported.folder / "export" / "lora" / "strengths.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rates_by_another_detector_than_the_scores_are_refused_before_any_image(
    exported: Run, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strengths, "open_pipeline", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(sys, "argv", ["strengths", "apple", "--detector", "other.pt"])
    Path("other.pt").write_bytes(b"other")
    with pytest.raises(
        SystemExit, match=r"scored with the detector detector\.safetensors .*other.pt"
    ):
        strengths.main()
    text = tmp_path / "text.ts"
    text.write_bytes(b"")
    lora = exported.folder / "export" / "lora" / "pytorch_lora_weights.safetensors"
    with pytest.raises(RunError, match="name the same detector and text encoder"):
        strengths.strength_rates(
            exported, dataclasses.replace(tiny, detector_text=text), lora, (1,)
        )


def test_images_are_the_originals_at_strength_zero_and_the_erased_ones_at_one(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("apple.txt").write_text("an apple and a dog on a table\n")
    run = erase(tiny, weights=changed(tiny))  # of the U-Net, of a rank that the LoRA has
    run.update(models={"model": str(tiny.model), "clip": [str(tiny.clips[0])],
                       "detector": str(tiny.detector)})  # fmt: skip
    erase_sd.generate("apple.txt", run="apple", steps=2, sampler="dpm++", dtype="bf16")
    erase_sd.score("apple")
    lora = export(run, tiny, "lora") / "pytorch_lora_weights.safetensors"
    shown: list[np.ndarray] = []
    real = strengths.detect

    def watched(detector: Path, files: list[Path], *args: Any, **options: Any) -> Any:
        shown.append(np.array(Image.open(files[0])))
        return real(detector, files, *args, **options)

    monkeypatch.setattr(strengths, "detect", watched)
    strengths.strength_rates(run, tiny, lora, (0.0, 1.0))
    original, erased = (np.array(Image.open(run.folder / image.file)) for image in run.images())
    assert np.array_equal(shown[0], original)
    far, near = (np.abs(image.astype(int) - erased).mean() for image in shown)
    assert near < far / 5  # not 0, because bf16 rounds the merged weights


def test_every_group_of_every_concept_has_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure()
    monkeypatch.setattr(strengths.plotting, "render_png", lambda draw, _: draw(figure) or b"")
    rate = rate_of([True, False])
    strengths.strengths_png(
        [
            strengths.StrengthRate(strength=1, concept=c, group=g, lora=rate, erased=rate)
            for c in ("apple", "chair", "cow", "dog") for g in strengths.GROUPS
        ],
        "four concepts",
    )  # fmt: skip
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(labels) == 12 and labels[-4:] == ["apple", "chair", "cow", "dog"]


def test_without_the_run_s_lora_or_scores_the_command_ends_with_one_line(
    erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["strengths", "apple"])
    with pytest.raises(SystemExit, match=r"strengths: .*lora: no LoRA; export it first"):
        strengths.main()
    folder = erased_run.folder / "export" / "lora"
    folder.mkdir(parents=True)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")
    exported = dataclasses.asdict(erased_run.erasure())
    write_json(folder / "erase.json", exported | {"weights_sha256": {"text_encoder": "0"}})
    with pytest.raises(SystemExit, match="made from other weights than the run has; export again"):
        strengths.main()
    write_json(folder / "erase.json", exported)
    with pytest.raises(SystemExit, match="score is missing; score first"):
        strengths.main()
