"""An erasure as a folder: the modules of the pipeline that it changed, and `erase.json`, how it came
to be."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import runtime
from ..data.concept import Concept
from ..errors import DivergedError, RunError, SettingError
from ..files import hash_file, whole_folder, write_json
from ..reading import read_record
from ..run import Run, run_folder
from ..run.records import Base, ErasureRecord, Origin
from .clip import Clip
from .presets import Models
from .tensors import module_in_precision
from .text_encoder import load_text_encoder, text_encoder_with, with_weights
from .towers import ALONE, WEIGHTS_FILE, erased_towers, save_towers
from .unet import UNET, UNET_FILE, load_unet, unet_with

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

IMAGE_TOWER = "image_tower"


def save(
    folder: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    models: Models,
    *,
    concepts: Sequence[Concept],
    settings: dict[str, Any],
    origin: Origin,
    held_out: dict[str, float],
    mentions: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    """Writes the pipeline's text encoders or U-Net with the unlearned `weights`, whole or not at all.

    `weights` maps a module's name to its tensors, named as in `CLIPModel` or in the U-Net. A single
    encoder is saved in `folder` itself, everything else in subfolders of their names; a trained image
    tower, which no pipeline reads, in `image_tower`. A CLIP or BLIP alone is saved whole. Raises
    DivergedError, and saves nothing, if a weight is not finite, and ModelError if one does not fit.
    """
    for tensors in weights.values():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise DivergedError(f"{name} is not finite after unlearning; nothing is saved")
    with whole_folder(folder) as partial:
        hashes: dict[str, str] = {}
        image_hashes: dict[str, str] = {}
        for name, tensors in weights.items():
            own = partial if list(weights) == [name] != [UNET] else partial / name
            _save_module(own, name, tensors, models)
            hashes[name] = hash_file(weights_file(own, name))
            if (tower := own / IMAGE_TOWER / WEIGHTS_FILE).is_file():
                image_hashes[name] = hash_file(tower)
        record = ErasureRecord(
            concepts=tuple(concepts),
            settings=settings,
            origin=origin,
            held_out=held_out,
            mentions={name: dict(phrases) for name, phrases in (mentions or {}).items()},
            base=Base(model=models.name, revision=models.revision, fingerprint=origin.model),
            weights_sha256=hashes,
            image_tower_sha256=image_hashes,
            versions=runtime.versions(),
        )
        write_json(partial / "erase.json", dataclasses.asdict(record))


def _save_module(folder: Path, name: str, tensors: Mapping[str, Tensor], models: Models) -> None:
    """Writes one module with its unlearned tensors, and its image tower if that was trained."""
    if name == ALONE:
        save_towers(folder, tensors, models.clip_folder(0))
    elif name == UNET:
        unet = unet_with(tensors, models.folder / name)
        unet.save_pretrained(folder, max_shard_size="1TB")  # one file
    else:
        text_encoder_with(tensors, models.folder / name).save_pretrained(folder)
        if tower := {n: t for n, t in tensors.items() if n.startswith("vision_model.")}:
            (folder / IMAGE_TOWER).mkdir()
            save_file(tower, folder / IMAGE_TOWER / WEIGHTS_FILE)


def check(folder: Path) -> ErasureRecord:
    """`erase.json` of an erasure; RunError if its weights are no longer those that were saved."""
    record = read_record(folder / "erase.json", ErasureRecord, hint="unlearn again")
    if not record.concepts or not record.weights_sha256:
        raise RunError(f"{folder / 'erase.json'}: damaged, names no encoder; unlearn again")
    hashes = {}
    for name, sha256 in record.weights_sha256.items():
        hashes[weights_file(module_folder(folder, name), name)] = sha256
    for name, sha256 in record.image_tower_sha256.items():
        hashes[module_folder(folder, name) / IMAGE_TOWER / WEIGHTS_FILE] = sha256
    for path, sha256 in hashes.items():
        if not path.is_file():
            raise RunError(f"{path}: missing; unlearn again")
        if hash_file(path) != sha256:
            raise RunError(f"{path}: damaged, not the weights that were saved; unlearn again")
    return record


def write_record(folder: Path, record: ErasureRecord) -> None:
    """Writes `erase.json` of an exported erasure.

    Its hashes are those of the modules in `folder` if it holds each in a folder of that name, and otherwise
    those of the run's modules, from which the export was made.
    """
    files = {name: weights_file(folder / name, name) for name in record.weights_sha256}
    if all(file.is_file() for file in files.values()):
        hashes = {name: hash_file(file) for name, file in files.items()}
        record = dataclasses.replace(record, weights_sha256=hashes, image_tower_sha256={})
    write_json(folder / "erase.json", dataclasses.asdict(record))


def check_base(run: Run, models: Models) -> ErasureRecord:
    """`check` of a run's erasure, and that `models` is the model that it was unlearned from.

    Raises RunError before unlearning is done, for damaged weights, and for another model.
    """
    run.unlearned()
    record = check(run.erased)
    if record.base.fingerprint != models.fingerprint((record.base.fingerprint,)):
        raise RunError(
            f"{run.folder}: unlearned from {record.base.model}, not {models.name} with its present "
            "weights; use the model that the run began with, or unlearn again"
        )
    return record


def module_folder(folder: Path, name: str) -> Path:
    """Where the module of that name is saved: in a subfolder of its name, or in `folder` itself."""
    return folder / name if (folder / name).is_dir() else folder


def weights_file(folder: Path, name: str) -> Path:
    """The file with the weights of the module of that name in its folder."""
    return folder / (UNET_FILE if name == UNET else WEIGHTS_FILE)


def check_outside(out: Path) -> None:
    """SettingError if `out`, by whatever path, is the folder of a run's erased weights or in it, where
    `module_folder` would take a new folder for a module; also if it ends without a name."""
    if out.name in ("", ".."):  # it is written under another name and renamed
        raise SettingError("needs the name of a folder", field="out", value=out)
    # A run's folder may itself be a link to elsewhere.
    named, place = Path(os.path.normpath(out.absolute())), Path(os.path.realpath(out))
    for folder in (named, *named.parents, place, *place.parents):
        if folder.name == Run(folder.parent).erased.name and Run(folder.parent).exists:
            raise SettingError(
                "is the folder of a run's erased weights, or in it", field="out", value=out
            )


def erased_clip(folder: Path, encoder: str, clip: Clip) -> Clip:
    """`clip` with the erased text tower of that name, and with its erased image tower, if it has one;
    the unlearned CLIP or BLIP if it was alone.

    `clip` itself if the erasure left that encoder as it was. Raises ModelError if they do not fit.
    """
    if encoder == ALONE:
        settings = check(folder).settings
        return erased_towers(folder, clip, image_tower=settings.get("towers") == "both")
    if encoder not in check(folder).weights_sha256:
        return clip
    own = module_folder(folder, encoder)
    tower = own / IMAGE_TOWER / WEIGHTS_FILE
    return with_weights(clip, own, tower if tower.is_file() else None)


def erased_folder(run_or_folder: str | Path) -> Path:
    """The folder of an erasure: of a run's name under `runs/`, of a run folder, or the folder itself.

    Raises RunError if there is no such folder.
    """
    named, folder = run_folder(run_or_folder), Path(run_or_folder)
    if not named.is_dir() and not folder.is_dir():
        raise RunError(f"{named}: no such folder; unlearn first")
    folder = named if named.is_dir() else folder
    return folder / "erased" if (folder / "erased").is_dir() else folder


def load(
    run_or_folder: str | Path,
    module: str = "text_encoder",
    dtype: runtime.Precision | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
) -> CLIPTextModel | UNet2DConditionModel:
    """An erased module of a run, ready for the pipeline: `pipe.text_encoder`, or `pipe.unet`.

    `run_or_folder` is a run's name under `runs/`, a run folder, or a folder of an erasure, such as an
    export to diffusers. SDXL has a second encoder, `text_encoder_2`. In float32 and on the CPU unless
    `dtype` and `device` say otherwise. Raises RunError if the erasure did not change that module, or its
    weights are damaged, and ModelError if one is not finite in that precision.
    """
    folder = erased_folder(run_or_folder)
    names = check(folder).weights_sha256
    if module not in names:
        raise RunError(f"{folder}: has no {module}; it has {', '.join(names)}")
    precision = runtime.dtype(dtype) if isinstance(dtype, str) else dtype or torch.float32
    load_module = load_unet if module == UNET else load_text_encoder
    place = module_folder(folder, module)
    model: Any = module_in_precision(load_module(place), precision, place)
    return model.to("cpu" if device is None else device)


def load_all(
    folder: Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Every erased module of a run or folder, by its name in the pipeline; see `load`."""
    return {
        name: load(folder, name, dtype, device)
        for name in check(erased_folder(folder)).weights_sha256
    }
