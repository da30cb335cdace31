"""generate and score on tiny real models, and the erased encoder without this package."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from erase_sd import runtime
from erase_sd.data.concept import Concept
from erase_sd.errors import DataError, ModelError, RunError, SettingError
from erase_sd.files import hash_file
from erase_sd.generation import batch as batches
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import stage as scoring
from erase_sd.scoring.table import csv_columns
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

QUICK = GenerateSettings(steps=2, batch=2)


@pytest.fixture(scope="module")
def unlearned(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unlearned run, and the cache that it filled."""
    folder = tmp_path_factory.mktemp("unlearned")
    short = {"steps": 2, "forget_batch": 4, "retain_batch": 4, "retain_floor": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        settings = UnlearnSettings(concepts=(Concept("apple"),), **short)  # type: ignore[arg-type]
        unlearn(settings, tiny, Run(folder / "runs/apple"))
    return folder


@pytest.fixture
def run(unlearned: Path) -> Run:
    """A copy of the unlearned run, and `apple.txt` with three prompts."""
    shutil.copytree(unlearned, Path(), dirs_exist_ok=True)
    Path("apple.txt").write_text("an apple\n\n# a remark\na dog and an apple\nan apple in a park\n")
    return Run(Path("runs/apple"))


def bytes_of(run: Run) -> dict[str, bytes]:
    return {
        str(p.relative_to(run.folder)): p.read_bytes()
        for p in (run.folder / "images").rglob("*.png")
    }


def test_original_and_erased_share_prompts_and_seeds_and_differ_in_pixels(
    tiny: Models, run: Run
) -> None:
    settings = dataclasses.replace(QUICK, images_per_prompt=2, seed=7)
    records = generate([Path("apple.txt")], settings, tiny, run)
    original, erased = (
        [r for r in records if r.variant == variant] for variant in ("original", "erased")
    )
    for field in ("pair", "text", "seed", "batch", "steps", "guidance", "size", "scheduler"):
        assert [getattr(r, field) for r in original] == [getattr(r, field) for r in erased]
    assert [r.prompt for r in original[::2]] == [
        "an apple",
        "a dog and an apple",
        "an apple in a park",
    ]
    assert {(r.pair.mentions, r.pair.set, r.pair.kind) for r in records} == {
        (("apple",), "forget", "plain")
    }
    assert [(r.seed, r.batch) for r in original] == [(7 + k, k // 2) for k in range(6)]
    assert {r.weights for r in original} == {tiny.fingerprint()}
    assert records == run.images()
    assert run.record.stages.generate is not None
    prompts = run.record.stages.generate.settings["prompts"]
    assert prompts == {"apple.txt": hash_file(Path("apple.txt"))}
    images = bytes_of(run)
    assert sorted(images) == sorted(r.file for r in records)
    assert images["images/original/apple-0000.png"] != images["images/erased/apple-0000.png"]


def test_the_same_seed_gives_the_same_images_bit_for_bit(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    first = bytes_of(run)
    for file in (run.folder / "images").rglob("*.png"):
        file.unlink()
    monkeypatch.setenv("ERASE_SD_CACHE", "another-cache")  # so that nothing is reused
    generate([Path("apple.txt")], QUICK, tiny, run)
    assert bytes_of(run) == first


def test_the_originals_images_are_generated_once_for_all_runs(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    first: dict[str, bytes] = bytes_of(run)
    calls: list[list[str]] = []
    record_calls(monkeypatch, calls)
    for file in (run.folder / "images").rglob("*.png"):
        file.unlink()
    generate([Path("apple.txt")], QUICK, tiny, run)
    assert bytes_of(run) == first
    assert len(calls) == 2  # two batches of the erased model, none of the original


def test_rates_of_earlier_images_do_not_stay_beside_new_ones(tiny: Models, run: Run) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    scoring.score(run, tiny)
    assert len(list(run.folder.glob("scores.*"))) == 3
    generate([Path("apple.txt")], dataclasses.replace(QUICK, seed=5), tiny, run)
    assert not list(run.folder.glob("scores.*"))


def test_images_of_other_libraries_are_not_taken_from_the_cache(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both variants come from the same libraries; a release may change a sampler."""
    generate([Path("apple.txt")], QUICK, tiny, run)
    calls: list[list[str]] = []
    record_calls(monkeypatch, calls)
    later = runtime.versions() | {"diffusers": "9.9"}
    monkeypatch.setattr(runtime, "versions", lambda: later)
    generate([Path("apple.txt")], QUICK, tiny, run)
    assert len(calls) == 4  # two batches of each variant


def test_a_damaged_image_in_the_cache_is_generated_again(tiny: Models, run: Run) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    first = bytes_of(run)
    cached = next(Path("cache/images").rglob("*.png"))
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(bytes(data))
    for file in (run.folder / "images").rglob("*.png"):
        file.unlink()
    generate([Path("apple.txt")], QUICK, tiny, run)
    assert bytes_of(run) == first


def record_calls(patch: pytest.MonkeyPatch, calls: list[list[str]]) -> None:
    """Appends the texts of every batch that is generated to `calls`."""
    generate_batch = batches.generate_batch

    def recorded(pipe: Any, texts: list[str], *args: Any) -> Any:
        calls.append(texts)
        return generate_batch(pipe, texts, *args)

    patch.setattr(batches, "generate_batch", recorded)


class StopError(Exception):
    """Stands for the process being killed between two batches."""


def test_an_interrupted_pass_resumes_and_ends_with_the_same_images(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 5:  # the first batch of the erased model
            raise StopError

    with pytest.raises(StopError):
        generate([Path("apple.txt")], QUICK, tiny, run, stop)
    calls: list[list[str]] = []
    with monkeypatch.context() as patch:
        record_calls(patch, calls)
        generate([Path("apple.txt")], QUICK, tiny, run)
    assert calls == [["an apple in a park"]]
    resumed = bytes_of(run)
    fresh = Run(Path("runs/fresh"))
    fresh.folder.mkdir()
    (fresh.folder / "erased").symlink_to((run.folder / "erased").resolve())
    fresh.update(stages=dataclasses.replace(run.record.stages, generate=None))
    generate([Path("apple.txt")], QUICK, tiny, fresh)
    assert bytes_of(fresh) == resumed


def test_out_of_memory_starts_over_with_half_the_batch(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generate_batch = batches.generate_batch

    def small(pipe: Any, texts: list[str], *args: Any) -> Any:
        if len(texts) > 1:
            raise torch.OutOfMemoryError
        return generate_batch(pipe, texts, *args)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "generate_batch", small)
        generate([Path("apple.txt")], QUICK, tiny, run)
    assert "out of memory; starting over with 1 images per batch" in caplog.text
    assert run.generated().batch == 1
    halved = bytes_of(run)
    shutil.rmtree(run.folder / "images")
    monkeypatch.setenv("ERASE_SD_CACHE", "another-cache")  # so that nothing is reused
    generate([Path("apple.txt")], dataclasses.replace(QUICK, batch=1), tiny, run)
    assert bytes_of(run) == halved


def test_images_of_removed_prompts_are_deleted(tiny: Models, run: Run) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    Path("apple.txt").write_text("an apple\n")
    assert generate([Path("apple.txt")], QUICK, tiny, run) == run.images()
    assert sorted(bytes_of(run)) == [
        "images/erased/apple-0000.png",
        "images/original/apple-0000.png",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n# only a remark\n", "holds no prompt"),
        (b"an apple\n\xff\n", r"not UTF-8 \(byte 9\)"),
        (b"apple " * 40, "apple: 42 tokens, at most 32 fit"),
        (None, "no such file"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_one_line(
    tiny: Models, run: Run, content: bytes | None, message: str
) -> None:
    Path("apple.txt").unlink()
    if content is not None:
        Path("apple.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        generate([Path("apple.txt")], QUICK, tiny, run)
    assert run.status("generate") == "missing"
    assert not (run.folder / "images").exists()


def test_a_prompt_that_is_too_long_is_found_in_any_of_the_files(tiny: Models, run: Run) -> None:
    Path("retain.txt").write_text(f"a cow\n{'dog ' * 40}\n")
    with pytest.raises(DataError, match=r"^retain: 42 tokens, at most 32 fit: 'dog dog"):
        generate([Path("apple.txt"), Path("retain.txt")], QUICK, tiny, run)
    assert run.status("generate") == "missing" and not (run.folder / "images").exists()


def test_generate_before_unlearn_and_score_before_generate_are_refused(
    tiny: Models, run: Run
) -> None:
    with pytest.raises(RunError, match=r"not a run folder \(no run.json\); unlearn first"):
        generate([Path("apple.txt")], QUICK, tiny, Run(Path("runs/none")))
    with pytest.raises(RunError, match="generate is missing; generate first"):
        scoring.score(run, tiny)
    with pytest.raises(
        RunError, match=r"runs/none: not a run folder \(no run.json\); unlearn first"
    ):
        scoring.score(Run(Path("runs/none")), tiny)


def test_damaged_erased_weights_are_refused(tiny: Models, run: Run) -> None:
    path = run.folder / "erased" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="damaged, not the weights that were saved"):
        generate([Path("apple.txt")], QUICK, tiny, run)


def test_weights_beyond_the_precision_are_refused_before_the_first_image(
    tiny: Models, huge_run: Run
) -> None:
    Path("apple.txt").write_text("an apple\n")
    with pytest.raises(
        ModelError, match=r"erased: .*norm.bias is not finite in float16; needs more"
    ):
        generate([Path("apple.txt")], dataclasses.replace(QUICK, dtype="fp16"), tiny, huge_run)
    assert not (huge_run.folder / "images").exists() and not list(Path().rglob("*.png"))
    assert generate([Path("apple.txt")], dataclasses.replace(QUICK, dtype="bf16"), tiny, huge_run)


def test_another_model_than_the_one_unlearned_from_is_refused(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny.model, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"remark": 1}))
    with pytest.raises(RunError, match=r"unlearned from .*sd, not .*other"):
        generate([Path("apple.txt")], QUICK, dataclasses.replace(tiny, model=other), run)


def test_scores_are_written_as_json_csv_and_markdown_and_images_are_detected_once(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    scores = scoring.score(run, tiny)
    assert [(rate.group, rate.original.n, rate.erased.n) for rate in scores.rates] == [
        ("target", 3, 3), ("retained_same", 1, 1),
    ]  # fmt: skip
    assert run.scores() == scores
    assert len(scores.sweep) == 3 * len(scores.rates)
    assert (run.folder / "scores.md").read_text().count("\n| apple | ") == 2
    lines = (run.folder / "scores.csv").read_text().splitlines()
    assert lines[0] == ",".join(csv_columns()) and len(lines) == 1 + len(scores.sweep)
    detections = run.detections()
    assert len(detections) == 6
    assert {(d.detector.iou, d.detector.size) for d in detections} == {(0.45, 64)}
    monkeypatch.setattr(
        "erase_sd.scoring.detections.detect", lambda *_: pytest.fail("detected twice")
    )
    assert scoring.score(run, tiny) == scores


def test_a_changed_or_missing_image_is_not_scored(tiny: Models, run: Run) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    path = run.folder / "images" / "erased" / "apple-0001.png"
    Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(
        RunError, match=r"apple-0001\.png: damaged, not the image that was generated"
    ):
        scoring.score(run, tiny)
    path.unlink()
    with pytest.raises(RunError, match=r"apple-0001\.png: missing; generate again"):
        scoring.score(run, tiny)


def test_a_file_that_is_not_a_detector_is_one_line(tiny: Models, run: Run, tmp_path: Path) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    nothing = tmp_path / "detector.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        scoring.score(run, dataclasses.replace(tiny, detector=nothing))
    nothing.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        scoring.score(run, dataclasses.replace(tiny, detector=nothing))
    encoder = run.folder / "erased" / "model.safetensors"
    with pytest.raises(ModelError, match=r"its metadata lacks .*\); needs the original \.pt"):
        scoring.score(run, dataclasses.replace(tiny, detector=encoder))


def test_a_class_the_detector_lacks_lists_similar_ones(tiny: Models, run: Run) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    with pytest.raises(SettingError, match=r"no such class; similar ones: .*(apple|car)") as error:
        scoring.score(run, tiny, ["pear"])
    assert (error.value.field, error.value.value) == ("detector_class", "pear")


def test_detection_leaves_the_calling_process_unchanged(tiny: Models, run: Run) -> None:
    generate([Path("apple.txt")], QUICK, tiny, run)
    code = (
        "import sys; from PIL import Image; before = Image.open\n"
        "from pathlib import Path; from erase_sd.detection.detector import detect\n"
        f"answer = detect(Path({str(tiny.detector)!r}), [Path({str(run.folder / 'images/erased/apple-0000.png')!r})])\n"
        "assert len(answer.detections) == 1 and answer.size == 64\n"
        "assert Image.open is before and 'ultralytics' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_erased_encoder_works_without_this_package(tiny: Models, run: Run) -> None:
    code = (
        "import sys, torch\n"
        "from diffusers import StableDiffusionPipeline\n"
        "from transformers import CLIPTextModel\n"
        "encoder = CLIPTextModel.from_pretrained(sys.argv[1])\n"
        "pipe = StableDiffusionPipeline.from_pretrained(sys.argv[2], text_encoder=encoder)\n"
        "g = lambda: torch.Generator().manual_seed(0)\n"
        "a = pipe('an apple', num_inference_steps=2, generator=g(), output_type='np').images[0]\n"
        "assert a.shape == (32, 32, 3), a.shape\n"
        "pipe = StableDiffusionPipeline.from_pretrained(sys.argv[2])\n"
        "b = pipe('an apple', num_inference_steps=2, generator=g(), output_type='np').images[0]\n"
        "assert abs(a - b).max() > 0\n"
        "assert not any(name.startswith('erase_sd') for name in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(run.folder / "erased"), str(tiny.model)]
    subprocess.run(command, check=True)


def test_the_saved_key_names_are_those_of_older_tools(run: Run) -> None:
    from safetensors import safe_open

    with safe_open(run.folder / "erased" / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names and all(name.startswith("text_model.") for name in names)
