"""Images of the original and of the erased model, from the same noise; the only diffusers user."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import artifact, runtime
from .errors import DataError, ModelError, RunError, SettingError
from .files import cache_folder, digest, hash_file, key_of, read_rows, write_bytes, write_rows
from .presets import Models
from .prompts import read_prompts
from .rundir import Run

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL.Image import Image

ARMS = ("original", "erased")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What shapes the images. Every field is an option of `erase-sd generate`."""

    images_per_prompt: int = 1
    """Images of each prompt, each from a seed of its own."""
    steps: int = 25
    """Denoising steps."""
    guidance: float = 3.5
    """Classifier-free guidance scale."""
    seed: int = 1000
    """Of the first image; image k of prompt p uses seed + p * images_per_prompt + k."""
    batch: int = 25
    """Images a batch. Part of the result: a batch's size changes pixels slightly."""

    def __post_init__(self) -> None:
        for name in ("images_per_prompt", "steps", "batch"):
            if getattr(self, name) < 1:
                raise SettingError(
                    f"--{name.replace('_', '-')}: needs at least 1, got {getattr(self, name)}"
                )
        if not 1 <= self.guidance <= 100:
            raise SettingError(f"--guidance: needs 1 to 100, got {self.guidance}")
        if not 0 <= self.seed < 2**63 - 10**9:
            raise SettingError(f"--seed: needs 0 or more, got {self.seed}")


@dataclass(frozen=True)
class _Shot:
    """One image to make."""

    file: str
    prompts: str
    prompt: str
    seed: int


def generate(
    prompts: list[Path],
    settings: Settings,
    models: Models,
    run: Run,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Draws every prompt with both text encoders; returns the rows of `images.jsonl`.

    The original's images are shared between runs through the cache. Raises DataError for a prompt
    file that cannot be used and RunError before unlearning is done.
    """
    run.require("unlearn", "unlearn first")
    runtime.quiet_libraries()
    described = artifact.check(run.folder / "erased")
    fingerprint = models.fingerprint()
    if described["base"]["fingerprint"] != fingerprint:
        raise RunError(
            f"{run.folder}: unlearned from {described['base']['model']}, not {models.model}"
        )
    shots = _plan(prompts, settings)
    pipe = open_pipeline(models.model)
    _check_lengths(pipe, shots)
    arms = {"original": pipe.text_encoder, "erased": artifact.load(run.folder)}
    weights = {"original": fingerprint, "erased": described["weights_sha256"]}
    shape = asdict(settings) | {
        "size": pipe.unet.config.sample_size * pipe.vae_scale_factor,
        "scheduler": type(pipe.scheduler).__name__,
        "model": fingerprint,
        "dtype": "float32",
        "device": runtime.device().type,
    }
    stage = shape | {
        "erased": weights["erased"],
        "prompts": {path.name: hash_file(path) for path in prompts},
    }
    with run.stage("generate", stage):
        kept = _kept(run)
        rows: list[dict[str, Any]] = []
        # A batch never mixes prompt files: retain.txt has the same batches in every run.
        files = [[s for s in shots if s.prompts == path.stem] for path in prompts]
        size = settings.batch
        batches = [file[i : i + size] for file in files for i in range(0, len(file), size)]
        done = 0
        for arm in ARMS:
            pipe.text_encoder = arms[arm].to(pipe.device)
            for number, batch in enumerate(batches):
                key = key_of([arm, weights[arm], shape, [asdict(shot) for shot in batch]])
                made = _batch(pipe, batch, settings, key, arm, run, kept)
                done += len(batch)
                for shot, sha256 in zip(batch, made, strict=True):
                    rows.append(
                        {"file": f"images/{arm}/{shot.file}", "arm": arm, "prompts": shot.prompts,
                         "prompt": shot.prompt, "seed": shot.seed, "steps": settings.steps,
                         "guidance": settings.guidance, "size": shape["size"],
                         "scheduler": shape["scheduler"], "weights": weights[arm], "batch": number,
                         "batch_key": key, "sha256": sha256}
                    )  # fmt: skip
                write_rows(run.folder / "images.jsonl", rows)
                if progress:
                    progress(done, 2 * len(shots), arm)
        _forget_strays(run, rows)
    return rows


def _plan(prompts: list[Path], settings: Settings) -> list[_Shot]:
    names = [path.stem for path in prompts]
    if len(set(names)) < len(names):
        raise DataError(f"--prompts: two files of one name ({', '.join(names)})")
    shots = []
    for path in prompts:
        for p, prompt in enumerate(read_prompts(path)):
            for k in range(settings.images_per_prompt):
                number = p * settings.images_per_prompt + k
                file = f"{path.stem}-{number:04}.png"
                shots.append(_Shot(file, path.stem, prompt, settings.seed + number))
    return shots


def open_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A diffusers Stable Diffusion folder on the device. Raises ModelError where it cannot be."""
    from diffusers import StableDiffusionPipeline

    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # what a damaged folder raises differs from release to release
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"--model {folder}: cannot be loaded ({first})") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(runtime.device())


def _check_lengths(pipe: StableDiffusionPipeline, shots: list[_Shot]) -> None:
    most = pipe.tokenizer.model_max_length
    for shot in shots:
        count = len(pipe.tokenizer(shot.prompt)["input_ids"])
        if count > most:
            raise DataError(
                f"prompt of {count} tokens in {shot.prompts}, at most {most}: {shot.prompt!r}"
            )


def _kept(run: Run) -> dict[str, tuple[str, str]]:
    """Images of an earlier, interrupted pass: file -> (batch key, sha256)."""
    rows = read_rows(run.folder / "images.jsonl")
    return {row["file"]: (row["batch_key"], row["sha256"]) for row in rows}


def _batch(
    pipe: StableDiffusionPipeline,
    batch: list[_Shot],
    settings: Settings,
    key: str,
    arm: str,
    run: Run,
    kept: dict[str, tuple[str, str]],
) -> list[str]:
    """Makes one batch, or finds it whole in the run or in the cache; returns the files' hashes."""
    files = [run.folder / "images" / arm / shot.file for shot in batch]
    before = [kept.get(f"images/{arm}/{shot.file}", ("", "")) for shot in batch]
    if all(
        b[0] == key and f.is_file() and hash_file(f) == b[1]
        for f, b in zip(files, before, strict=True)
    ):
        return [b[1] for b in before]
    cached = cache_folder() / "images" / key
    encoded = list(_from_cache(cached, len(batch))) if arm == "original" else []
    if not encoded:
        encoded = [
            _png(image)
            for image in draw(pipe, [s.prompt for s in batch], [s.seed for s in batch], settings)
        ]
        if arm == "original":
            for i, data in enumerate(encoded):
                write_bytes(cached / f"{i:04}-{digest(data)[:32]}.png", data)
    for file, data in zip(files, encoded, strict=True):
        write_bytes(file, data)
    return [digest(data) for data in encoded]


def _from_cache(folder: Path, count: int) -> Iterator[bytes]:
    """A cached batch, or nothing where an image is missing or its bytes are not its name's hash."""
    files = sorted(folder.glob("*.png"))
    found = [file.read_bytes() for file in files]
    if len(found) == count and all(
        digest(data)[:32] == file.stem[5:] for file, data in zip(files, found, strict=True)
    ):
        yield from found
    else:
        shutil.rmtree(folder, ignore_errors=True)


def draw(
    pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], settings: Settings
) -> list[Image]:
    """One batch of images; each starts from the noise of its own seed, made on the CPU."""
    side = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    with torch.inference_mode():
        embeds = _embed(pipe, prompts)
        empty = _embed(pipe, [""]).expand_as(embeds)
        out = pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=empty,
            latents=torch.cat(noise).to(pipe.device, pipe.unet.dtype),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
        )
    return list(out.images)


def _embed(pipe: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    """What the U-Net reads: all padded last-layer states, (n, tokens, width), no mask."""
    ids = pipe.tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    states: Tensor = pipe.text_encoder(ids.to(pipe.device)).last_hidden_state
    return states


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _forget_strays(run: Run, rows: list[dict[str, Any]]) -> None:
    """Removes images of an earlier pass that this one has not made."""
    named = {row["file"] for row in rows}
    for file in (run.folder / "images").rglob("*.png"):
        if str(file.relative_to(run.folder)) not in named:
            file.unlink()
