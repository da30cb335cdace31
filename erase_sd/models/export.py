"""Erased text encoders in the formats that other programs read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checked import sweep
from ..data.concept import slug
from ..errors import ModelError, RunError, SettingError, reason
from ..files import read_json, whole_folder, write_json, write_text
from ..run import Run
from ..run.records import ErasureRecord
from . import erased
from .checkpoint_keys import ENCODER_PLACES, FILE_NAMES, hub_names, open_clip_names
from .choices import EXPORT_FORMATS
from .choices import ExportFormat as ExportFormat
from .model_card import card
from .presets import Models
from .source import foreign_files
from .text_encoder import load_text_encoder


@dataclass(frozen=True)
class _Erasure:
    """What is exported, and what the formats need to know about it."""

    run: Run
    models: Models
    record: ErasureRecord
    base: Path | None

    @property
    def encoders(self) -> dict[str, Path]:
        names = self.record.weights_sha256
        return {name: erased.encoder_folder(self.run.erased, name) for name in names}


def export(
    run: Run,
    models: Models,
    to: ExportFormat,
    out: Path | None = None,
    base: Path | None = None,
) -> Path:
    """Writes the run's erased encoders as a folder, `out` or `export/<to>` in the run; returns it.

    Formats: `diffusers`, text encoder folders with the key names that transformers 4 and 5 read;
    `comfyui`, one file per encoder for a text encoder slot; `a1111`, the single-file checkpoint
    `base` with the erased encoders in it; `hub-folder`, `diffusers` with a model card.
    """
    if to not in EXPORT_FORMATS:
        raise SettingError(
            f"unknown; needs one of {', '.join(EXPORT_FORMATS)}", field="to", value=to
        )
    if (to == "a1111") != (base is not None):
        raise SettingError(
            "a1111 needs a single-file checkpoint (.safetensors); no other format takes one",
            field="base", value=base,
        )  # fmt: skip
    erasure = _Erasure(run, models, erased.check_base(run, models), base)
    out = out or run.folder / "export" / to
    if out.exists() and not (out / "erase.json").is_file():
        raise SettingError("exists and is not an export", field="out", value=out)
    with run.lock():
        sweep(out.parent, out.name)
        with whole_folder(out) as partial:
            write_json(partial / "erase.json", dataclasses.asdict(erasure.record))
            _WRITERS[to](partial, erasure)
    return out


def encoder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an erased encoder's folder, in `checkpoint_keys.hub_names`.

    Raises ModelError for weights that are not finite or do not fit their configuration.
    """
    path = folder / erased.WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = {n: t.shape for n, t in load_text_encoder(folder).state_dict().items()}
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            raise RunError(f"{path}: {name} has the shape {tuple(tensors[name].shape)}")
    return hub_names(tensors)


def _diffusers(folder: Path, erasure: _Erasure) -> None:
    for name, source in erasure.encoders.items():
        (folder / name).mkdir()
        save_file(
            encoder_tensors(source), folder / name / erased.WEIGHTS_FILE, metadata={"format": "pt"}
        )
        write_json(folder / name / "config.json", read_json(source / "config.json"))


def _comfyui(folder: Path, erasure: _Erasure) -> None:
    for source in erasure.encoders.values():
        with foreign_files(source):
            width = int(read_json(source / "config.json").get("hidden_size", 0))
        file = folder / f"{FILE_NAMES.get(width, f'clip_{width}')}.safetensors"
        save_file({n: t.half() for n, t in encoder_tensors(source).items()}, file)


def _a1111(folder: Path, erasure: _Erasure) -> None:
    base = erasure.base
    assert base is not None  # checked by `export`
    try:
        with safe_open(base, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"not a readable .safetensors file ({reason(error)})", field="base", value=base
        ) from None
    for name, source in erasure.encoders.items():
        _replace_encoder(tensors, name, source, erasure)
    without = "-".join(slug(concept.name) for concept in erasure.record.concepts)
    save_file(tensors, folder / f"{base.stem}-without-{without}.safetensors", metadata=metadata)


def _replace_encoder(
    tensors: dict[str, Tensor], name: str, source: Path, erasure: _Erasure
) -> None:
    """Puts the erased encoder in the place of the checkpoint's own, in the checkpoint's precision."""
    places = ENCODER_PLACES[name, len(erasure.encoders)]
    place = next((p for p in places if any(key.startswith(p.prefix) for key in tensors)), None)
    if place is None:
        raise ModelError(f"has no {name} of this kind of model", field="base", value=erasure.base)
    weights = encoder_tensors(source)
    for key, tensor in (open_clip_names(weights) if place.open_clip else weights).items():
        own = tensors.get(place.prefix + key)
        if own is None or own.shape != tensor.shape:
            shape = "missing" if own is None else tuple(own.shape)
            raise ModelError(
                f"{place.prefix + key} is {shape}, the erased encoder has {tuple(tensor.shape)}",
                field="base",
                value=erasure.base,
            )
        tensors[place.prefix + key] = tensor.to(own.dtype)


def _hub_folder(folder: Path, erasure: _Erasure) -> None:
    run, scores = erasure.run, erasure.run.folder / "scores.md"
    if run.status("score") != "done" or not scores.is_file():
        raise RunError(f"{run.folder}: a model card needs the table of rates; score first")
    _diffusers(folder, erasure)
    table = scores.read_text(encoding="utf-8")
    write_text(folder / "README.md", card(erasure.record, erasure.models, table))


_WRITERS: dict[ExportFormat, Callable[[Path, _Erasure], None]] = {
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "a1111": _a1111,
    "hub-folder": _hub_folder,
}
