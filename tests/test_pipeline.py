"""generate and score on tiny real models, and the erased encoder without any of our code."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from erase_sd.data.concept import Concept
from erase_sd.errors import DataError, ModelError, RunError, SettingError
from erase_sd.files import read_rows
from erase_sd.generation import stage as generation
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import stage as scoring
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

QUICK = generation.Settings(steps=2, batch=2)


@pytest.fixture
def run(tiny: Models) -> Run:
    """An unlearned run, and `apple.txt` with three prompts."""
    run = Run(Path("runs/apple"))
    unlearn(
        Settings(
            concepts=(Concept("apple"),), steps=2, forget_batch=4, retain_batch=4, retain_floor=0.0
        ),
        tiny,
        run,
    )
    Path("apple.txt").write_text("an apple\n\n# a remark\na dog and an apple\nan apple in a park\n")
    return run


def bytes_of(run: Run) -> dict[str, bytes]:
    return {
        str(p.relative_to(run.folder)): p.read_bytes()
        for p in (run.folder / "images").rglob("*.png")
    }


def test_both_arms_share_prompts_and_seeds_and_differ_in_pixels(tiny: Models, run: Run) -> None:
    rows = generation.generate([Path("apple.txt")], QUICK, tiny, run)
    original, erased = ([r for r in rows if r["arm"] == arm] for arm in ("original", "erased"))
    for key in ("prompt", "seed", "batch", "steps", "guidance", "size", "scheduler"):
        assert [r[key] for r in original] == [r[key] for r in erased]
    assert [r["prompt"] for r in original] == [
        "an apple",
        "a dog and an apple",
        "an apple in a park",
    ]
    assert len({r["seed"] for r in original}) == 3
    assert rows == read_rows(run.folder / "images.jsonl")
    images = bytes_of(run)
    assert sorted(images) == sorted(r["file"] for r in rows)
    assert images["images/original/apple-0000.png"] != images["images/erased/apple-0000.png"]


def test_the_same_seed_gives_the_same_images_bit_for_bit(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    first = bytes_of(run)
    for file in (run.folder / "images").rglob("*.png"):
        file.unlink()
    monkeypatch.setenv("ERASE_SD_CACHE", "another-cache")  # nothing can come from the first pass
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    assert bytes_of(run) == first


def test_the_originals_images_are_drawn_once_for_all_runs(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    first, calls = bytes_of(run), []
    draw = generation.draw
    monkeypatch.setattr(generation, "draw", lambda *a: calls.append(a[1]) or draw(*a))
    for file in (run.folder / "images").rglob("*.png"):
        file.unlink()
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    assert bytes_of(run) == first
    assert len(calls) == 2  # two batches of the erased arm, none of the original's


def test_a_flipped_bit_in_the_cache_is_found_and_drawn_anew(tiny: Models, run: Run) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    first = bytes_of(run)
    cached = next(Path("cache/images").rglob("*.png"))
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(bytes(data))
    for file in (run.folder / "images").rglob("*.png"):
        file.unlink()
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    assert bytes_of(run) == first


class StopError(Exception):
    """Stands for a kill between two batches."""


def test_an_interrupted_pass_goes_on_where_it_was(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, of: int, arm: str) -> None:
        if done == 5:  # the first batch of the erased arm
            raise StopError

    with pytest.raises(StopError):
        generation.generate([Path("apple.txt")], QUICK, tiny, run, stop)
    calls: list[list[str]] = []
    draw = generation.draw
    with monkeypatch.context() as patch:
        patch.setattr(generation, "draw", lambda *a: calls.append(a[1]) or draw(*a))
        generation.generate([Path("apple.txt")], QUICK, tiny, run)
    assert calls == [["an apple in a park"]]
    resumed = bytes_of(run)
    fresh = Run(Path("runs/fresh"))
    fresh.folder.mkdir()
    (fresh.folder / "erased").symlink_to((run.folder / "erased").resolve())
    (fresh.folder / "run.json").write_text(
        json.dumps({"stages": {"unlearn": run.manifest["stages"]["unlearn"]}})
    )
    generation.generate([Path("apple.txt")], QUICK, tiny, fresh)
    assert bytes_of(fresh) == resumed


def test_images_of_an_earlier_prompt_file_go(tiny: Models, run: Run) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    Path("apple.txt").write_text("an apple\n")
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
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
        (b"apple " * 40, "prompt of 42 tokens in apple, at most 32"),
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
        generation.generate([Path("apple.txt")], QUICK, tiny, run)
    assert run.status("generate") == "missing"
    assert not (run.folder / "images").exists()


def test_generate_before_unlearn_and_score_before_generate_are_refused(
    tiny: Models, run: Run
) -> None:
    with pytest.raises(RunError, match=r"no run folder|unlearn is missing; unlearn first"):
        generation.generate([Path("apple.txt")], QUICK, tiny, Run(Path("runs/none")))
    with pytest.raises(RunError, match="generate is missing; generate first"):
        scoring.score(run, tiny)


def test_damaged_erased_weights_are_found_before_drawing(tiny: Models, run: Run) -> None:
    path = run.folder / "erased" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="damaged, not the weights that were saved"):
        generation.generate([Path("apple.txt")], QUICK, tiny, run)


def test_a_model_that_the_run_was_not_unlearned_from_is_refused(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny.model, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"remark": 1}))
    with pytest.raises(RunError, match=r"unlearned from .*sd, not .*other"):
        generation.generate([Path("apple.txt")], QUICK, dataclasses.replace(tiny, model=other), run)


def test_scores_stand_in_three_files_and_are_not_detected_twice(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    tables = scoring.score(run, tiny)
    rows = tables.rows
    assert [(row.group, row.arm, row.n) for row in rows] == [
        ("target", "original", 3), ("target", "erased", 3),
        ("retained_same", "original", 1), ("retained_same", "erased", 1),
    ]  # fmt: skip
    stored = json.loads((run.folder / "scores.json").read_text())
    assert [row["rate"] for row in stored["rows"]] == [row.rate for row in rows]
    assert len(stored["sweep"]) == 3 * len(rows)
    assert (run.folder / "scores.md").read_text().count("\n| apple | ") == 2
    assert len((run.folder / "scores.csv").read_text().splitlines()) == 1 + len(stored["sweep"])
    detections = read_rows(run.folder / "detections.jsonl")
    assert len(detections) == 6 and all(d["iou"] == 0.45 and d["size"] == 64 for d in detections)
    monkeypatch.setattr(scoring, "detect", lambda *_: pytest.fail("detected twice"))
    assert scoring.score(run, tiny) == tables


def test_a_changed_or_missing_image_is_not_scored(tiny: Models, run: Run) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    path = run.folder / "images" / "erased" / "apple-0001.png"
    Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(RunError, match=r"apple-0001\.png: damaged, not the image that was made"):
        scoring.score(run, tiny)
    path.unlink()
    with pytest.raises(RunError, match=r"apple-0001\.png: missing; generate again"):
        scoring.score(run, tiny)


def test_a_file_that_is_no_detector_is_one_line(tiny: Models, run: Run, tmp_path: Path) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    nothing = tmp_path / "detector.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        scoring.score(run, dataclasses.replace(tiny, detector=nothing))
    nothing.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        scoring.score(run, dataclasses.replace(tiny, detector=nothing))
    encoder = run.folder / "erased" / "model.safetensors"
    with pytest.raises(ModelError, match="no detector, its metadata lacks"):
        scoring.score(run, dataclasses.replace(tiny, detector=encoder))


def test_a_class_the_detector_lacks_lists_the_near_ones(tiny: Models, run: Run) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    with pytest.raises(SettingError, match=r"--detector-class pear: .* near: .*apple|car"):
        scoring.score(run, tiny, "pear")


def test_scoring_leaves_this_process_as_it_was(tiny: Models, run: Run) -> None:
    generation.generate([Path("apple.txt")], QUICK, tiny, run)
    code = (
        "import sys; from PIL import Image; before = Image.open\n"
        "from pathlib import Path; from erase_sd.detection.detector import detect\n"
        f"found = detect(Path({str(tiny.detector)!r}), [Path({str(run.folder / 'images/erased/apple-0000.png')!r})])\n"
        "assert len(found['rows']) == 1 and found['size'] == 64\n"
        "assert Image.open is before and 'ultralytics' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_erased_encoder_works_without_any_of_our_code(tiny: Models, run: Run) -> None:
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


def test_the_saved_key_names_are_those_that_older_tools_read(run: Run) -> None:
    from safetensors import safe_open

    with safe_open(run.folder / "erased" / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names and all(name.startswith("text_model.") for name in names)
