"""The erased text encoder as a folder: plain weights, and `erase.json` that says how they came."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import encoders, runtime
from .errors import DivergedError, RunError
from .files import hash_file, read_json, whole_folder, write_json
from .presets import Models

if TYPE_CHECKING:
    from transformers import CLIPTextModel

WEIGHTS = "model.safetensors"


def save(
    folder: Path,
    weights: dict[str, Tensor],
    models: Models,
    settings: dict[str, Any],
    measures: dict[str, float],
) -> None:
    """Writes the pipeline's text encoder with `weights` in it, whole or not at all.

    Raises DivergedError for weights that are not finite: they are never saved.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise DivergedError(f"{name} is not finite after unlearning; nothing is saved")
    encoder = encoders.text_encoder_with(weights, models.model / "text_encoder")
    with whole_folder(folder) as partial:
        encoder.save_pretrained(partial)
        write_json(
            partial / "erase.json",
            {
                "concepts": [concept["name"] for concept in settings["concepts"]],
                "settings": settings,
                "held_out": measures,
                "base": {"model": str(models.model), "fingerprint": settings["model"]},
                "weights_sha256": hash_file(partial / WEIGHTS),
                "versions": runtime.versions(),
            },
        )


def check(folder: Path) -> dict[str, Any]:
    """`erase.json` of an erased encoder whose weights are still what was saved."""
    described = read_json(folder / "erase.json")
    try:
        fresh = hash_file(folder / WEIGHTS) == described["weights_sha256"]
    except FileNotFoundError:
        raise RunError(f"{folder / WEIGHTS}: missing; unlearn again") from None
    if not fresh:
        raise RunError(
            f"{folder / WEIGHTS}: damaged, not the weights that were saved; unlearn again"
        )
    return dict(described)


def load(run: str | Path) -> CLIPTextModel:
    """The erased text encoder of a run folder: `pipe.text_encoder = erase_sd.load("runs/apple")`.

    Raises RunError where there is none or its weights are damaged.
    """
    from transformers import CLIPTextModel

    folder = Path(run) / "erased" if (Path(run) / "erased").is_dir() else Path(run)
    check(folder)
    encoder: CLIPTextModel = encoders.load(CLIPTextModel, folder)
    return encoder
