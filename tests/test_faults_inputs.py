"""Images, prompts, settings and weights that cannot be used: left out and counted, or one line."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faulty import Faults
from PIL import Image
from report_run import scored_run
from safetensors.torch import load_file, save_file
from unlearn_runs import KilledError, kill_at, short

from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.prompts import read_prompt_file
from erase_sd.data.split import split_by_concept
from erase_sd.errors import DataError, DivergedError, EraseError, ModelError, RunError, SettingError
from erase_sd.files import hash_file, write_records
from erase_sd.generation.settings import GenerateSettings
from erase_sd.mini.dataset import dataset
from erase_sd.models.erased import check
from erase_sd.models.export import export
from erase_sd.models.features import image_features
from erase_sd.models.pipeline import open_pipeline
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.report.contact_sheet import contact_sheet
from erase_sd.run import Run
from erase_sd.unlearning.checkpoint import Checkpoint
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

pytestmark = pytest.mark.faults


def _image(kind: str, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


def _noise() -> bytes:
    """The first half of a PNG."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "PNG")
    return file.getvalue()[: len(file.getvalue()) // 2]


def _bomb() -> bytes:
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + end
    )


BAD_IMAGES: dict[str, bytes] = {
    "empty": b"",
    "truncated JPEG": _image("JPEG", size=(64, 64))[:-200],
    "truncated PNG": _noise(),
    "GIF named jpg": _image("GIF"),
    "BMP named jpg": _image("BMP"),
    "TIFF named jpg": _image("TIFF"),
    "text": b"not an image",
    "HTML": b"<html><script>alert(1)</script></html>",
    "header only": b"\xff\xd8\xff\xe0",
    "bomb": _bomb(),
    "zeros": b"\0" * 4096,
    "a PostScript program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}
GOOD_IMAGES: dict[str, bytes] = {
    "CMYK": _image("JPEG", "CMYK"), "grey": _image("JPEG", "L"), "16 bit": _image("PNG", "I;16"),
    "palette": _image("PNG", "P"), "PNG named jpg": _image("PNG"), "transparent": _image("PNG", "RGBA"),
    "one pixel": _image("JPEG", size=(1, 1)), "one bit": _image("PNG", "1"),
}  # fmt: skip


@pytest.fixture
def data(tiny: Models, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, whose images may be damaged."""
    folder = tmp_path / "data"
    shutil.copytree(tiny.pairs(), folder)
    return folder


@pytest.mark.parametrize("towers", ["text", "both"])
def test_unreadable_images_are_counted_named_and_left_out(
    tiny: Models, data: Path, towers: str, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    read = read_flickr30k(data)
    names = [
        i.image for i in split_by_concept(read.items, short().concepts).images("forget", "train")
    ]
    count = len(names) - 4
    bad = dict(list(BAD_IMAGES.items())[:count])
    for name, content in zip(names, bad.values(), strict=False):
        read.path_of(name).write_bytes(content)
    others = [item.image for item in read.items if item.image not in names]
    replaced = dict(zip(GOOD_IMAGES, others, strict=False))
    for kind, name in replaced.items():
        read.path_of(name).write_bytes(GOOD_IMAGES[kind])
    run = Run(Path("runs/apple"))
    unlearn(short(towers=towers, method="cliperase"), dataclasses.replace(tiny, data=data), run)
    left_out = run.unlearned().unreadable_images
    for name, kind in zip(names, bad, strict=False):
        with faults("unreadable images", f"{towers}: {kind}"):
            assert name in left_out
    for kind in GOOD_IMAGES:
        with faults("odd images that are read", f"{towers}: {kind}"):
            assert replaced[kind] not in left_out
    [message] = [m for m in caplog.messages if "unreadable images are left out" in m]
    assert f"{len(bad)} unreadable images" in message and names[0] in message


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling link", "link to /etc/passwd"])
def test_what_is_not_a_regular_file_is_neither_image_nor_captions_nor_prompts(
    kind: str, data: Path, tmp_path: Path, faults: Faults
) -> None:
    def put(path: Path) -> None:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/etc/passwd" if "passwd" in kind else "/nowhere")

    item = read_flickr30k(data).items[0]
    path = read_flickr30k(data).path_of(item.image)
    path.unlink()
    put(path)
    with faults("not regular files", f"image: {kind}"):
        read = read_flickr30k(data)
        assert item.image in read.missing or "passwd" in kind
    put(tmp_path / "prompts.txt")
    if "passwd" not in kind:
        with faults("not regular files", f"prompts: {kind}"), pytest.raises(DataError):
            read_prompt_file(tmp_path / "prompts.txt")
    (tmp_path / "captions").mkdir()
    put(tmp_path / "captions" / "results.csv")
    with faults("not regular files", f"captions: {kind}"), pytest.raises(EraseError):
        read_flickr30k(tmp_path / "captions")


def test_other_pixels_under_the_same_name_give_other_features(
    tiny: Models, data: Path, faults: Faults
) -> None:
    clip = load_clip(tiny.clip_folder(0))
    read = read_flickr30k(data)
    name = read.items[0].image
    before = image_features(clip, read, [name])[name]
    Image.effect_noise((128, 128), 90).convert("RGB").save(read.path_of(name), "JPEG")
    with faults("silent wrong results", "image features of other pixels"):
        after = read_flickr30k(data)
        assert not torch.equal(image_features(clip, after, [name])[name], before)
    with faults("silent wrong results", "data of other pixels in the run's origin"):
        assert (
            after.digest == read.digest
            and after.images_digest != read_flickr30k(tiny.pairs()).images_digest
        )


def test_a_damaged_cache_of_features_is_computed_again(tiny: Models, faults: Faults) -> None:
    clip, read = load_clip(tiny.clip_folder(0)), read_flickr30k(tiny.pairs())
    names = [item.image for item in read.items[:4]]
    expected = image_features(clip, read, names)
    [path] = Path("cache").rglob("*.safetensors")
    valid = path.read_bytes()
    for place in range(0, len(valid), len(valid) // 20):
        with faults("changed bits", f"cached features: byte {place}"):
            path.write_bytes(valid[:place] + bytes([valid[place] ^ 1]) + valid[place + 1 :])
            again = image_features(clip, read, names)
            assert all(torch.allclose(again[n], expected[n], atol=1e-6) for n in names)


def test_a_damaged_cached_dataset_is_made_again(faults: Faults) -> None:
    folder = dataset(12)
    expected = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for number, path in enumerate(files):
        damage = ("flip", "cut", "remove", "more")[number % 4]
        with faults("damaged caches", f"{path.name}: {damage}"):
            valid = path.read_bytes()
            if damage == "flip":
                path.write_bytes(valid[:-9] + bytes([valid[-9] ^ 1]) + valid[-8:])
            elif damage == "cut":
                path.write_bytes(valid[: len(valid) // 2])
            elif damage == "remove":
                path.unlink()
            else:
                (folder / "dataset_flickr30k.json").write_text("{}")
            dataset(12)
            assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == expected


@pytest.fixture(scope="module")
def checkpoint(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its first validation."""
    folder = tmp_path_factory.mktemp("killed") / "apple"
    with pytest.raises(KilledError):
        unlearn(short(), tiny, Run(folder), kill_at(3))
    return folder


def test_a_checkpoint_of_which_a_bit_has_changed_is_refused(
    checkpoint: Path, tiny: Models, faults: Faults
) -> None:
    file = checkpoint / "checkpoint.safetensors"
    valid = file.read_bytes()
    for place in range(9, len(valid), len(valid) // 30):
        with faults("changed bits", f"checkpoint: byte {place}"):
            Path("x").write_bytes(valid[:place] + bytes([valid[place] ^ 4]) + valid[place + 1 :])
            with pytest.raises(RunError, match=r"damaged|written with"):
                Checkpoint(Path("x"), {}).load()


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"seed": 1},
        {"forget_batch": 4},
        {"steps": 7},
        {"validate_every": 3},
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_without_a_run_json(
    checkpoint: Path, tiny: Models, change: dict[str, object], faults: Faults
) -> None:
    shutil.copytree(checkpoint, "runs/apple")
    Path("runs/apple/run.json").unlink()
    with faults("silent wrong results", f"resuming with {change}"):
        with pytest.raises(RunError, match=f"written with {next(iter(change))}"):
            unlearn(short(**change), tiny, Run(Path("runs/apple")))


@pytest.mark.slow
def test_a_lost_training_log_comes_back_from_the_checkpoint(
    checkpoint: Path, tiny: Models, faults: Faults
) -> None:
    for damage in (None, b"", b"[]\n", b'{"step": 2}\n'):
        folder = Path(f"runs/{damage!r:.6}")
        shutil.copytree(checkpoint, folder)
        (folder / "train.jsonl").unlink()
        if damage is not None:
            (folder / "train.jsonl").write_bytes(damage)
        with faults("silent wrong results", f"training log: {damage!r}"):
            unlearn(short(), tiny, Run(folder))
            assert [record.step for record in Run(folder).training()] == [2, 4, 6]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(
    tiny: Models, tmp_path: Path, part: str, value: float, faults: Faults
) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(tiny.folder, folder)
    [file] = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    list(tensors.values())[-1].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with faults("silent wrong results", f"{value} in {part}"):
        with pytest.raises(ModelError, match="not finite"):
            open_pipeline(folder)


@pytest.fixture(scope="module")
def finished(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored_run(tiny, tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("change", ["nan", "infinity", "shape", "missing"])
@pytest.mark.parametrize("to", ["diffusers", "comfyui"])
def test_export_refuses_weights_that_a_hash_vouches_for(
    finished: Run, tiny: Models, change: str, to: str, faults: Faults
) -> None:
    shutil.copytree(finished.folder, "runs/apple")
    run = Run(Path("runs/apple"))
    file, record = run.erased / "model.safetensors", run.erased / "erase.json"
    old, tensors = hash_file(file), load_file(file)
    name = next(n for n in tensors if n.endswith("fc1.weight"))
    if change == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif change == "missing":
        del tensors[name]
    else:
        tensors[name][0, 0] = math.nan if change == "nan" else math.inf
    save_file(tensors, file, metadata={"format": "pt"})
    record.write_text(record.read_text().replace(old, hash_file(file)))
    with faults("silent wrong results", f"export to {to}: {change}"):
        with pytest.raises(EraseError):
            export(run, tiny, to)  # type: ignore[arg-type]
        assert not (run.folder / "export" / to).exists()


def test_a_damaged_erased_encoder_is_made_again(
    finished: Run, tiny: Models, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(Path("runs/apple"))
    unlearn(short(), tiny, run)
    file = run.erased / "model.safetensors"
    valid = file.read_bytes()
    for damage in (b"", valid[:-5], valid[:-5] + b"\0\1\2\3\4", None):
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
        with faults("damaged results", f"erased weights: {str(damage)[:9]}"):
            unlearn(short(), tiny, run)
            assert file.read_bytes() == valid
            check(run.erased)
            assert not [line for line in caplog.messages if line.count("again") > 1]


def test_a_sheet_shows_no_image_that_was_replaced(finished: Run, faults: Faults) -> None:
    shutil.copytree(finished.folder, "runs/apple")
    run = Run(Path("runs/apple"))
    for variant in ("original", "erased"):
        path = run.folder / f"images/{variant}/apple-0000.png"
        valid = path.read_bytes()
        for what, content in (
            ("other", _image("PNG", size=(64, 64))),
            ("none", None),
            ("cut", valid[:-9]),
        ):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with faults("silent wrong results", f"contact sheet: {variant} {what}"):
                with pytest.raises(RunError, match="generate again"):
                    contact_sheet([run], Path("sheet.png"))
            path.write_bytes(valid)


def test_a_sheet_shows_no_runs_of_other_settings_below_one_original(
    finished: Run, faults: Faults
) -> None:
    for name in ("apple", "other"):
        shutil.copytree(finished.folder, f"runs/{name}")
    runs = [Run(Path("runs/apple")), Run(Path("runs/other"))]
    contact_sheet(runs, Path("sheet.png"))
    images = runs[1].images()
    for change in ({"steps": 9}, {"guidance": 1.0}, {"dtype": "fp16"}, {"sampler": "ddim"}):
        others = [dataclasses.replace(image, **change) for image in images]  # type: ignore[arg-type]
        write_records(runs[1].folder / "images.jsonl", others)
        with faults("silent wrong results", f"contact sheet: two runs, one with {change}"):
            with pytest.raises(
                RunError, match=f"runs/other: its original has {next(iter(change))}"
            ):
                contact_sheet(runs, Path("sheet.png"))


BAD_SETTINGS: dict[str, tuple[object, ...]] = {
    "steps": (0, -1, 10**7), "learning_rate": (0.0, -1.0, 1e300, math.inf, math.nan),
    "seed": (-1, 2**63, 10**30), "forget_batch": (0, 10**9), "retain_batch": (1, 10**9),
    "validate_every": (0, 10**9), "min_steps": (-1, 10**9), "forget_threshold": (-0.1, 1.1, math.nan),
    "retain_floor": (-1.0, 2.0, math.nan), "method": ("none", ""), "towers": ("left",), "dtype": ("fp8",),
}  # fmt: skip
BAD_IMAGE_SETTINGS: dict[str, tuple[object, ...]] = {
    "steps": (0, 1001, 10**9), "images_per_prompt": (0, -1, 10**9), "batch": (0, 10**9),
    "guidance": (0.5, 101.0, math.nan, math.inf), "seed": (-1, 2**63, 10**30),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((short, n, v) for n, values in BAD_SETTINGS.items() for v in values),
        *((GenerateSettings, n, v) for n, values in BAD_IMAGE_SETTINGS.items() for v in values),
    ],
)
def test_numbers_out_of_bounds_are_one_line(
    kind: Callable[..., UnlearnSettings | GenerateSettings],
    name: str,
    value: object,
    faults: Faults,
) -> None:
    with faults("settings out of bounds", f"{name} {value}"):
        with pytest.raises(SettingError, match=name) as caught:
            kind(**{name: value})
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("columns", "scale"), [(0, 1), (10**9, 1), (1, 0), (1, 10**9), (1, -1)])
def test_a_sheet_out_of_bounds_is_one_line(
    finished: Run, columns: int, scale: int, faults: Faults
) -> None:
    with faults("settings out of bounds", f"show {columns} {scale}"), pytest.raises(SettingError):
        contact_sheet([finished], Path("sheet.png"), columns, scale)


def test_a_stage_that_fails_before_it_changed_anything_leaves_the_old_state(
    finished: Run, tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.generation import batch
    from erase_sd.generation.stage import generate
    from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase

    shutil.copytree(finished.folder, "runs/apple")
    run, before = Run(Path("runs/apple")), (finished.folder / "run.json").read_bytes()
    Path("apple.txt").write_text("an apple pie\n")

    def exhausted(*_: object) -> object:
        return torch.empty(2**60)  # the CPU's allocator refuses for real

    with faults("out of memory", "generate on a CPU"):
        with pytest.raises(ModelError, match="out of memory"), monkeypatch.context() as patch:
            patch.setattr(batch, "generate_batch", exhausted)
            generate([Path("apple.txt")], GenerateSettings(steps=2), tiny, run)
    with faults("states after a failure", "generate"):
        assert (run.folder / "run.json").read_bytes() == before
    new = Run(Path("runs/new"))
    with faults("out of memory", "unlearn on a CPU"):
        with pytest.raises(ModelError, match="out of memory"), monkeypatch.context() as patch:
            patch.setattr(AnchoredCLIPErase, "loss", exhausted)
            unlearn(short(), tiny, new)
    with faults("states after a failure", "unlearn"):
        assert new.status("unlearn") == "missing"
    with faults("states after a failure", "a lower learning rate after a divergence"):
        with pytest.raises(DivergedError), monkeypatch.context() as patch:
            patch.setattr(AnchoredCLIPErase, "loss", lambda *_: {"x": torch.tensor(math.nan)})
            unlearn(short(), tiny, new)
        unlearn(short(learning_rate=1e-3), tiny, new)


def test_what_a_killed_writer_left_is_swept(tiny: Models, faults: Faults) -> None:
    run = Run(Path("runs/apple"))
    unlearn(short(), tiny, run)
    for name in (".checkpoint.safetensors.x.partial", ".run.json.y.partial"):
        (run.folder / name).write_text("left")
    (run.folder / ".erased.z.partial").mkdir()
    run.erased.rename(run.folder / ".erased.old")
    with run.lock():
        pass
    with faults("partial files", "swept under the lock"):
        assert not list(run.folder.glob("*.partial"))
    with faults("partial files", "an old folder without a new one comes back"):
        check(run.erased)


def test_one_damaged_run_does_not_end_the_scoring_of_the_others(
    finished: Run, faults: Faults, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from report_run import known_answers

    from erase_sd import api

    monkeypatch.setattr("erase_sd.scoring.detections.detect", known_answers)
    for name, damage in (("a", None), ("b", "[]"), ("c", "{}"), ("d", "")):
        shutil.copytree(finished.folder, f"runs/{name}")
        if damage is not None:
            Path(f"runs/{name}/run.json").write_text(damage)
    shutil.copytree(finished.folder, "runs/e")
    Path("runs/e/images/original/apple-0000.png").unlink()
    with caplog.at_level(logging.ERROR), faults("damaged runs", "score over all runs"):
        scores = api.score()
        assert {rate.run for rate in scores.rates} == {"a"}
    for name in "bcde":
        with faults("damaged runs", f"{name} is named"):
            assert f"runs/{name}" in caplog.text
