"""The erased text encoder as a folder: plain weights, and `erase.json` that says how they came."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from .. import runtime
from ..errors import DivergedError, RunError
from ..files import hash_file, read_json, whole_folder, write_json
from . import text_encoder as encoders
from .presets import Models

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from .clip import Clip

WEIGHTS = "model.safetensors"
IMAGE_TOWER = "image_tower"


def save(
    folder: Path,
    weights: dict[str, dict[str, Tensor]],
    models: Models,
    settings: dict[str, Any],
    measures: dict[str, float],
) -> None:
    """Writes the pipeline's text encoders with `weights` in them, whole or not at all.

    `weights` maps an encoder's name to its tensors. One encoder lies in `folder` itself, several in
    folders of their names; an image tower that was trained, which no pipeline reads, in
    `image_tower`, named as in `CLIPModel`. Raises DivergedError for weights that are not finite: they
    are never saved.
    """
    for tensors in weights.values():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise DivergedError(f"{name} is not finite after unlearning; nothing is saved")
    with whole_folder(folder) as partial:
        hashes, seeing = {}, {}
        for name, tensors in weights.items():
            encoder = encoders.text_encoder_with(tensors, models.folder / name)
            own = partial / name if len(weights) > 1 else partial
            encoder.save_pretrained(own)
            hashes[name] = hash_file(own / WEIGHTS)
            tower = {n: t for n, t in tensors.items() if n.startswith("vision_model.")}
            if tower:
                (own / IMAGE_TOWER).mkdir()
                save_file(tower, own / IMAGE_TOWER / WEIGHTS)
                seeing[name] = hash_file(own / IMAGE_TOWER / WEIGHTS)
        write_json(
            partial / "erase.json",
            {
                "concepts": [concept["name"] for concept in settings["concepts"]],
                "settings": settings,
                "held_out": measures,
                "base": {
                    "model": str(models.model),
                    "revision": models.revision,
                    "fingerprint": settings["model"],
                },
                "weights_sha256": hashes,
                "image_tower_sha256": seeing,
                "versions": runtime.versions(),
            },
        )


def check(folder: Path) -> dict[str, Any]:
    """`erase.json` of erased encoders whose weights are still what was saved."""
    described = read_json(folder / "erase.json")
    saved_of = {
        folder_of(folder, name) / part / WEIGHTS: saved
        for part, key in (("", "weights_sha256"), (IMAGE_TOWER, "image_tower_sha256"))
        for name, saved in described[key].items()
    }
    for path, saved in saved_of.items():
        if not path.is_file():
            raise RunError(f"{path}: missing; unlearn again")
        if hash_file(path) != saved:
            raise RunError(f"{path}: damaged, not the weights that were saved; unlearn again")
    return dict(described)


def folder_of(folder: Path, name: str) -> Path:
    """Where the encoder of that name lies in an artifact: in a folder of its own, or alone."""
    return folder / name if (folder / name).is_dir() else folder


def erased_clip(folder: Path, encoder: str, clip: Clip) -> Clip:
    """`clip` with the towers of an artifact: its text encoder of that name, and the image tower that
    was trained with it, where one was.

    Raises ModelError where they do not fit.
    """
    own = folder_of(folder, encoder)
    tower = own / IMAGE_TOWER / WEIGHTS
    return encoders.with_weights(clip, own, tower if tower.is_file() else None)


def load(run: str | Path, encoder: str = "text_encoder") -> CLIPTextModel:
    """An erased text encoder of a run folder: `pipe.text_encoder = erase_sd.load("runs/apple")`.

    SDXL has a second one, `text_encoder_2`. Raises RunError where there is none or its weights are
    damaged.
    """
    folder = Path(run) / "erased" if (Path(run) / "erased").is_dir() else Path(run)
    names = check(folder)["weights_sha256"]
    if encoder not in names:
        raise RunError(f"{folder}: has no {encoder}; it has {', '.join(names)}")
    return encoders.load_text_encoder(folder_of(folder, encoder))
