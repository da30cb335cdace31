"""Faults that were found by reading: files that are replaced, caches that are trusted, numbers that diverge."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import Decline, DeclinedError, Faults
from report_run import known_answers, scored_run
from safetensors.torch import load_file, save_file

from erase_sd import api
from erase_sd.attacks.registry import build_attacks
from erase_sd.attacks.settings import AttackSettings
from erase_sd.attacks.target import Target, attacked_captions, cycled, open_models
from erase_sd.checked import MANIFEST
from erase_sd.data import formats, prompts
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.split import split_by_concept
from erase_sd.errors import DataError, DivergedError, ModelError, RunError, SettingError
from erase_sd.files import cache_folder, write_json, write_text
from erase_sd.generation import share
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models import single_file
from erase_sd.models.checkpoint_keys import encoder_tensors
from erase_sd.models.export import export
from erase_sd.models.pipeline import open_pipeline
from erase_sd.models.presets import Models
from erase_sd.models.publish import check_hub_id
from erase_sd.models.sampling import generate_batch
from erase_sd.run import Run
from erase_sd.runtime import processes

pytestmark = pytest.mark.faults
posix = pytest.mark.skipif(os.name == "nt", reason="needs devices and pipes of POSIX")


@pytest.fixture(scope="module")
def scored(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored_run(tiny, tmp_path_factory.mktemp("found"))


@pytest.fixture
def finished(scored: Run) -> Run:
    """A scored run that may be damaged."""
    shutil.copytree(scored.folder, "runs/apple")
    return Run(Path("runs/apple"))


@posix
@pytest.mark.parametrize("name", ["/dev/null", "pipe", "folder", "socket link"])
def test_writing_replaces_regular_files_only(name: str, faults: Faults) -> None:
    path = Path(name)
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "socket link":
        path.symlink_to("/dev/null")
    before = path.stat()
    with faults("files that must not be replaced", name):
        with pytest.raises(RunError, match="not a regular file"):
            write_text(path, "text")
        assert path.stat().st_mode == before.st_mode and path.stat().st_ino == before.st_ino


@posix
def test_writing_through_a_link_keeps_the_link(faults: Faults) -> None:
    Path("real").write_text("old")
    Path("link").symlink_to("real")
    with faults("files that must not be replaced", "a link to a file"):
        write_text(Path("link"), "new")
        assert Path("link").is_symlink() and Path("real").read_text() == "new"


def test_an_export_never_replaces_erased_encoders(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    shutil.copytree(finished.folder, "runs/other")
    for folder in ("runs/apple/erased", "runs/other/erased", "runs/apple/../apple/erased"):
        with faults("files that must not be replaced", f"export to {folder}"):
            with pytest.raises(SettingError, match="erased weights"):
                export(finished, tiny, "comfyui", Path(folder))
            assert Path(folder, "model.safetensors").is_file()


@posix
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to /dev/zero"])
@pytest.mark.parametrize(
    "name", ["run.json", "images.jsonl", "detections.jsonl", "scores.json", "train.jsonl"]
)
def test_records_that_are_not_regular_files_are_not_read(
    finished: Run, name: str, kind: str, faults: Faults
) -> None:
    path = finished.folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    read = {
        "run.json": lambda: finished.unlearned(), "images.jsonl": finished.images,
        "detections.jsonl": finished.detections, "scores.json": finished.scores,
        "train.jsonl": finished.training,
    }  # fmt: skip
    with faults("not regular files", f"{name}: {kind}"), pytest.raises(RunError):
        read[name]()


@posix
def test_an_image_of_a_run_that_is_a_pipe_is_one_line(finished: Run, faults: Faults) -> None:
    image = finished.images()[0]
    (finished.folder / image.file).unlink()
    os.mkfifo(finished.folder / image.file)
    with faults("not regular files", "an image of a run"), pytest.raises(RunError):
        finished.image_bytes(image)


def test_a_compressed_caption_file_that_inflates_beyond_bounds_is_refused(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data").mkdir()
    bomb = gzip.compress(b"1.jpg#0\tAn apple .\n" * 400_000)
    Path("data/results_20130124.token.gz").write_bytes(bomb)
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 20)
    with faults("malicious files", "captions: a gzip bomb"):
        with pytest.raises(DataError, match="holds more than"):
            read_flickr30k(Path("data"))


def test_too_many_bytes_of_prompts_are_refused_and_not_cut(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MAX_PROMPT_BYTES", 20)
    monkeypatch.setattr(prompts, "_standard_input", lambda: b"an apple\nan apple p")
    assert prompts.read_prompt_file(Path("-")).texts == ("an apple", "an apple p")
    monkeypatch.setattr(prompts, "_standard_input", lambda: b"an apple\nan apple pie")
    Path("long.txt").write_text("an apple\nan apple pie")
    for name in ("-", "long.txt"):
        with faults("silent wrong results", f"prompts that are cut: {name}"):
            with pytest.raises(DataError, match="holds more than"):
                prompts.read_prompt_file(Path(name))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_images_that_are_not_finite_are_refused(tiny: Models, part: str, faults: Faults) -> None:
    pipe = open_pipeline(tiny.folder, "fp32")
    with torch.no_grad():
        for weight in getattr(pipe, part).parameters():
            weight.fill_(math.nan)
    with faults("silent wrong results", f"pixels that are not finite: {part}"):
        with pytest.raises(ModelError, match="not finite"):
            generate_batch(pipe, ["an apple"], [1], 1, 2.0)


@pytest.fixture
def victim(tiny: Models, erased_run: Run) -> Target:
    data = read_flickr30k(tiny.pairs())
    sets = split_by_concept(data.items, [Concept("apple")])
    pipe, encoders = open_models(erased_run, tiny)
    return Target(
        pipe=pipe, original={"text_encoder": pipe.text_encoder}, erased=encoders,
        concept=Concept("apple"), detector=tiny.detector_file(), detector_class="apple",
        captions=cycled(attacked_captions(pipe, data, sets, Concept("apple"), "held-out"), 2),
        training=attacked_captions(pipe, data, sets, Concept("apple"), "train"), seed=7, steps=1,
        guidance=2.0,
    )  # fmt: skip


DIVERGING = {
    "embeddings": {"steps": 2, "captions": 2}, "textual-inversion": {"steps": 2, "images": 2},
    "relearning": {"steps": "1,2", "images": 2}, "unlearndiffatk": {"steps": 2, "prompts": 2},
    "p4d": {"steps": 2, "prompts": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", DIVERGING)
def test_an_attack_that_diverges_is_no_erasure(
    victim: Target, name: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    [own] = build_attacks([name], DIVERGING[name]).values()
    with torch.no_grad():
        for weight in victim.pipe.unet.parameters():
            weight.mul_(1e30)
        if name == "embeddings":
            for weight in victim.erased["text_encoder"].parameters():
                weight.mul_(1e30)
    with faults("silent wrong results", f"attack that diverges: {name}"):
        with pytest.raises(DivergedError, match="lower learning rate"):
            own.run(victim)


@pytest.mark.parametrize(
    ("name", "budget", "value"),
    [
        ("embeddings", "counts", "100"), ("textual-inversion", "tokens", "100"),
        ("word-search", "counts", "100"), ("ring-a-bell", "tokens", "100"), ("p4d", "tokens", "100"),
        ("unlearndiffatk", "tokens", "100"),
    ],
)  # fmt: skip
def test_more_tokens_than_the_context_length_are_one_line(
    victim: Target, name: str, budget: str, value: str, faults: Faults
) -> None:
    [own] = build_attacks(
        [name], {budget: value, **({"captions": 2} if name == "embeddings" else {})}
    ).values()
    with faults("settings out of bounds", f"{name}: {budget} {value}"):
        with pytest.raises(SettingError, match="context length"):
            own.run(victim)


@pytest.mark.parametrize(
    "change",
    [{"steps": 1001}, {"steps": 0}, {"images": 10**9}, {"images": 0}, {"seed": 2**63}, {"guidance": math.nan}],
)  # fmt: skip
def test_attack_settings_have_bounds(change: dict[str, Any], faults: Faults) -> None:
    with faults("settings out of bounds", f"attack: {change}"), pytest.raises(SettingError):
        AttackSettings(**change)


@pytest.mark.parametrize("value", ["1e300", "1e7", "nan", "inf", "-1", "x", ""])
def test_budgets_have_bounds(value: str, faults: Faults) -> None:
    with faults("settings out of bounds", f"attack budget: {value!r}"):
        with pytest.raises(SettingError):
            build_attacks(["embeddings"], {"learning_rate": value})


def test_a_photograph_that_cannot_be_read_does_not_end_an_attack(
    victim: Target, tiny: Models, tmp_path: Path, faults: Faults
) -> None:
    shutil.copytree(tiny.pairs(), tmp_path / "data")
    data = read_flickr30k(tmp_path / "data")
    sets = split_by_concept(data.items, [Concept("apple")])
    first = attacked_captions(victim.pipe, data, sets, Concept("apple"), "train")[0].image
    first.write_bytes(b"not an image")
    with faults("unreadable images", "attack: a photograph"):
        left = attacked_captions(victim.pipe, data, sets, Concept("apple"), "train")
        assert left and first not in [caption.image for caption in left]
        assert first.name in data.unreadable


def test_measurements_of_other_weights_are_not_the_runs(finished: Run, faults: Faults) -> None:
    other = {"text_encoder": "0" * 64}
    about = {"data": {"kind": "x", "folder": "x", "forget": 1, "retain": 1}}
    attacks = {"threshold": 0.25, "detector": "x", "detector_sha256": "x", "rows": []}
    for weights, valid in ((finished.erasure().weights_sha256, True), (other, False)):
        write_json(
            finished.folder / "evaluation.json",
            {"about": about | {"erased_sha256": weights}, "measurements": []},
        )
        write_json(finished.folder / "attacks.json", attacks | {"erased_sha256": weights})
        for name, read in (("evaluation", finished.evaluation), ("attacks", finished.attacks)):
            with faults(
                "silent wrong results", f"{name} of {'the same' if valid else 'other'} weights"
            ):
                if valid:
                    assert read() is not None
                else:
                    with pytest.raises(RunError, match="other weights"):
                        read()


@pytest.mark.parametrize("dtype", ["fp16"])
def test_an_export_that_overflows_its_precision_is_refused(
    finished: Run, tiny: Models, dtype: str, faults: Faults
) -> None:
    file = finished.erased / "model.safetensors"
    tensors = load_file(file)
    tensors[next(n for n in tensors if n.endswith("fc1.weight"))][0, 0] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with faults("silent wrong results", f"export: overflow in {dtype}"):
        with pytest.raises(ModelError, match="not finite in float16"):
            encoder_tensors(finished.erased, torch.float16)


def test_a_lora_of_an_encoder_that_did_not_change_is_refused(
    finished: Run, tiny: Models, faults: Faults
) -> None:
    from erase_sd.files import hash_file

    file, record = finished.erased / "model.safetensors", finished.erased / "erase.json"
    old = hash_file(file)
    shutil.copy(tiny.folder / "text_encoder" / "model.safetensors", file)
    record.write_text(record.read_text().replace(old, hash_file(file)))
    with faults("silent wrong results", "export: a LoRA of nothing"):
        with pytest.raises(ModelError, match="nothing to export"):
            export(finished, tiny, "lora")


@pytest.mark.parametrize(
    "hub_id", ["a/..", "a/b--c", "a/x.git", "-a/b", "a", "a/b/c", "../b", "a/" + "b" * 200]
)
def test_hub_ids_that_the_hub_refuses_are_one_line(hub_id: str, faults: Faults) -> None:
    with faults("settings out of bounds", f"push to {hub_id[:9]}"), pytest.raises(SettingError):
        check_hub_id(hub_id)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_cache_of_a_single_file_is_made_again(
    tiny: Models, tmp_path: Path, damage: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(path: Path, kind: str, base: str, folder: Path) -> None:
        shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
        converted.append(folder)

    monkeypatch.setattr(single_file, "_convert", convert)
    monkeypatch.setattr(single_file, "_kind", lambda _: ("StableDiffusionPipeline", "x/y"))
    (tmp_path / "x.safetensors").write_bytes(b"x")
    folder = single_file.folder_of(tmp_path / "x.safetensors")
    file = next((folder / "unet").glob("*.safetensors"))
    valid = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(
            valid[:-9] if damage == "cut" else valid[:-9] + bytes([valid[-9] ^ 1]) + valid[-8:]
        )
    with faults("damaged caches", f"single-file checkpoint: {damage}"):
        assert single_file.folder_of(tmp_path / "x.safetensors") == folder
        assert file.read_bytes() == valid and len(converted) == 2
        assert (folder / MANIFEST).is_file()


ABSURD: dict[str, tuple[str, Any]] = {
    "text_encoder/config.json": ("num_hidden_layers", 10**9), "unet/config.json": ("layers_per_block", 10**9),
    "vae/config.json": ("num_decoder_blocks", [10**9, 1]),
    "scheduler/scheduler_config.json": ("num_train_timesteps", 10**12),
    "text_encoder/config.json ": ("vocab_size", 10**10),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_configurations_of_absurd_sizes_are_refused_before_they_are_built(
    tiny: Models, tmp_path: Path, name: str, faults: Faults
) -> None:
    shutil.copytree(tiny.folder, tmp_path / "sd")
    file, (field, value) = tmp_path / "sd" / name.strip(), ABSURD[name]
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with faults("malicious files", f"{name.strip()}: {field} {value}"):
        with pytest.raises(ModelError, match=r"at most|not the CLIP|weights"):
            open_pipeline(tmp_path / "sd")


@pytest.mark.parametrize("library", ["payload", "os", "../payload", "subprocess"])
def test_a_pipeline_cannot_name_code_of_its_own(
    tiny: Models, tmp_path: Path, library: str, faults: Faults
) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(tiny.folder, folder)
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\nclass UNet2DConditionModel: pass\n"
    for place in (folder, folder / "unet", Path()):
        (place / "payload.py").write_text(code)
    index = folder / "model_index.json"
    content = json.loads(index.read_text()) | {"unet": [library, "UNet2DConditionModel"]}
    index.write_text(json.dumps(content))
    with faults("malicious files", f"model_index.json: code in {library}"):
        with pytest.raises(ModelError):
            open_pipeline(folder)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4"}, (0, 1)),
        ({"MASTER_ADDR": "x", "RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"MASTER_ADDR": "x"}, (0, 1)),
        ({"MASTER_ADDR": "x", "RANK": "4", "WORLD_SIZE": "4"}, None),
        ({"MASTER_ADDR": "x", "RANK": "-1"}, None),
        ({"MASTER_ADDR": "x", "WORLD_SIZE": "0"}, None),
        ({"MASTER_ADDR": "x", "RANK": "one"}, None),
        ({"MASTER_ADDR": "x", "WORLD_SIZE": ""}, None),
    ],
)
def test_variables_of_a_launcher(
    variables: dict[str, str], expected: tuple[int, int] | None, faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with faults("environments", f"launcher's variables: {variables}"):
        if expected:
            assert processes() == expected
        else:
            with pytest.raises(SettingError, match="unset"):
                processes()


def test_a_process_that_is_not_there_is_not_waited_for(
    finished: Run, tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(share, "ABSENT_SECONDS", 0.2)
    Path("apple.txt").write_text("an apple\nan apple pie\n")
    with faults("concurrency", "a process that never began"):
        with pytest.raises(RunError, match="process 2 of 2 is not there"):
            generate([Path("apple.txt")], GenerateSettings(steps=1, batch=1), tiny, finished)


@posix
def test_a_cache_among_temporary_files_that_others_can_write_is_not_used(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    monkeypatch.delenv("ERASE_SD_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path("~"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = cache_folder()
    with faults("malicious files", "the cache of a user without a home folder is their own"):
        assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with faults("malicious files", "a cache that others can write"):
        with pytest.raises(RunError, match="ERASE_SD_CACHE"):
            cache_folder()
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with faults("malicious files", "a cache that is a link of another user"):
        with pytest.raises((RunError, OSError)):
            cache_folder()


def test_a_name_that_is_not_utf_8_is_one_line(faults: Faults) -> None:
    with faults("environments", "a record with a foreign file name"):
        with pytest.raises(RunError, match="not UTF-8"):
            write_json(Path("x.json"), {"folder": "caf\udce9"})


def test_a_long_run_is_announced_and_can_be_declined(
    finished: Run, tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from erase_sd.generation import cost

    decline = Decline()
    monkeypatch.setattr(cost, "MANY_IMAGES", 4)
    checked: list[tuple[Path, float]] = []
    monkeypatch.setattr(cost, "check_space", lambda *own: checked.append(own))
    prompts = Path("apple.name-free.txt")
    prompts.write_text("an apple\nan apple pie\n")
    before = (finished.folder / "run.json").read_bytes()
    with faults("long runs", "generate: declined"), caplog.at_level("INFO"):
        with pytest.raises(DeclinedError):
            generate([prompts], GenerateSettings(steps=1), tiny, finished, approve=decline)
        assert decline.images == 4 and decline.seconds is not None
        assert checked == [(finished.folder, 4 * cost.BYTES_PER_PIXEL * 32**2)]
        assert "2 of 2 prompts name apple" in caplog.text
        assert "4 images are to be generated, in about" in caplog.text
        assert (finished.folder / "run.json").read_bytes() == before


def test_all_runs_are_scored_but_the_damaged_ones_and_these_are_named(
    finished: Run, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr("erase_sd.scoring.detections.detect", known_answers)
    for name in ("folder", "images"):
        shutil.copytree(finished.folder, f"runs/{name}")
    Path("runs/folder/images.jsonl").unlink()
    Path("runs/folder/images.jsonl").mkdir()
    image = Path("runs/images/images/original/apple-0000.png")
    image.unlink()
    image.mkdir()
    with faults("damaged runs", "folders in the places of files"):
        scores = api.score()
        assert {rate.run for rate in scores.rates} == {"apple"}
        assert len(scores.unscored) == 2
        assert all(
            any(f"runs/{n}" in line for line in scores.unscored) for n in ("folder", "images")
        )


@pytest.mark.parametrize("rank", [0, -1, 10**9])
def test_ranks_have_bounds(finished: Run, tiny: Models, rank: int, faults: Faults) -> None:
    with faults("settings out of bounds", f"rank {rank}"), pytest.raises(SettingError):
        export(finished, tiny, "lora", rank=rank)


@pytest.mark.parametrize("fits", [4, 1, 0])
def test_a_detector_that_runs_out_of_memory_takes_smaller_batches(
    fits: int, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from erase_sd.detection import worker

    def detections(_: object, images: list[Image.Image], *more: object) -> list[tuple[int, ...]]:
        if len(images) > fits:
            torch.empty(2**60)  # the CPU's allocator refuses for real
        return [(image.width,) for image in images]

    monkeypatch.setattr(worker.Detector, "_detect", detections)
    detector = object.__new__(worker.Detector)
    detector.size = 64
    images = [Image.new("RGB", (width, 8)) for width in range(1, 12)]
    with faults("out of memory", f"detection: {fits} images fit"):
        if fits:
            assert detector(images) == [(width,) for width in range(1, 12)]
        else:
            with pytest.raises(ModelError, match="out of memory"):
                detector(images)
