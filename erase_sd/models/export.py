"""An erasure in the formats that other programs read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import runtime
from ..checked import sweep
from ..data.concept import joined_slug
from ..errors import ModelError, RunError, SettingError, reason
from ..files import whole_folder, write_json, write_text
from ..reading import check_regular, read_json
from ..run import Run
from ..run.records import ErasureRecord
from ..runtime import log
from . import erased
from .checkpoint_keys import FILE_NAMES, encoder_file, encoder_in_place, encoder_tensors
from .choices import EXPORT_FORMATS, ExportFormat
from .lora_export import write_lora
from .model_card import card
from .pipeline_kinds import text_encoders
from .presets import Models
from .publish import check_hub_id, push
from .quiet import quiet_libraries
from .source import foreign_files
from .tensors import in_precision
from .unet import UNET, load_unet, single_file_unet, unet_tensors

CardSection = Callable[[Run, Path], str]
"""Writes pictures of a run into a folder and returns the section of a model card that shows them."""


@dataclass(frozen=True)
class _Erasure:
    """The erasure to export, with everything that the formats need."""

    run: Run
    models: Models
    record: ErasureRecord
    """Without paths of this machine."""
    base: Path | None = None
    rank: int | None = None
    dtype: torch.dtype | None = None
    """Precision of the weights; None: the format's own."""
    hub_id: str | None = None
    """Where a `hub-folder` will be uploaded."""
    pictures: CardSection | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """Provenance, for the header of every safetensors file."""
        record = self.record
        return {
            "format": "pt",
            "erase_sd.concepts": ", ".join(concept.name for concept in record.concepts),
            "erase_sd.method": str(record.settings.get("method", "")),
            "erase_sd.base": record.base.model,
            "erase_sd.base_revision": record.base.revision or "",
            "erase_sd.base_fingerprint": record.base.fingerprint,
            "erase_sd.version": record.versions.get("erase-sd", ""),
        }

    @property
    def modules(self) -> dict[str, Path]:
        """Folders of what the erasure changed, by name."""
        names = self.record.weights_sha256
        return {name: erased.module_folder(self.run.erased, name) for name in names}


def export(
    run: Run,
    models: Models,
    to: ExportFormat,
    out: Path | None = None,
    base: Path | None = None,
    *,
    rank: int | None = None,
    dtype: runtime.Precision | None = None,
    push_to: str | None = None,
    pictures: CardSection | None = None,
) -> Path:
    """Writes what the run erased as a folder, `out` or `export/<to>` in the run; returns it.

    Formats: `diffusers`, folders of text encoders, with the key names that transformers 4 and 5 read,
    and of the U-Net; `comfyui`, one file per encoder for a text encoder slot; `a1111`, the single-file
    checkpoint `base` with the erased modules in it; `lora`, the change alone, at `rank`, with a strength
    that every program can set; `hub-folder`, `diffusers` with a model card and `pictures` for it,
    uploaded to the repository `push_to`. `dtype` is the weights' precision. No file names a folder of
    this machine. Raises SettingError for comfyui if the U-Net changed.
    """
    _check_options(to, base, rank, push_to)
    if models.model is None:
        raise RunError(f"{run.erased}: a CLIP or BLIP alone is an ordinary folder of transformers")
    record = shareable(erased.check_base(run, models), models)
    if UNET in record.weights_sha256 and to == "comfyui":
        raise SettingError(
            "holds text encoders, and this run changed the U-Net; needs lora, diffusers, a1111 or "
            "hub-folder",
            field="to", value=to,
        )  # fmt: skip
    precision = None if dtype is None else runtime.dtype(dtype)
    erasure = _Erasure(run, models, record, base, rank, precision, push_to, pictures)
    out = out or run.folder / "export" / to
    erased.check_outside(out)
    if out.exists() and not (out / "erase.json").is_file():
        raise SettingError("exists and is not an export", field="out", value=out)
    _warn_if_not_erased(run)
    quiet_libraries()
    with run.lock(reader=True):
        sweep(out.parent, out.name)
        with whole_folder(out) as partial:
            _WRITERS[to](partial, erasure)
            erased.write_record(partial, record)
    if push_to is not None:
        log.info("%s: uploaded", push(out, push_to))
    return out


def _check_options(
    to: ExportFormat, base: Path | None, rank: int | None, push_to: str | None
) -> None:
    if to not in EXPORT_FORMATS:
        raise SettingError(
            f"unknown; needs one of {', '.join(EXPORT_FORMATS)}", field="to", value=to
        )
    if (to == "a1111") != (base is not None):
        raise SettingError(
            "a1111 needs a single-file checkpoint (.safetensors); no other format takes one",
            field="base", value=base,
        )  # fmt: skip
    if rank is not None and to != "lora":
        raise SettingError("only a lora has a rank", field="rank", value=rank)
    if push_to is not None:
        if to != "hub-folder":
            raise SettingError("only a hub-folder is uploaded", field="push_to", value=push_to)
        check_hub_id(push_to)


def _warn_if_not_erased(run: Run) -> None:
    unlearned = run.unlearned()
    concepts = ", ".join(concept.name for concept in unlearned.concepts)
    bound = unlearned.settings.get("max_residual")
    for name, result in unlearned.encoders.items():
        if isinstance(bound, int | float) and result.residual > bound:
            log.warning(
                "%s: %s not erased from %s (residual concept similarity %.2f); exported all the same",
                run.folder, concepts, name, result.residual,
            )  # fmt: skip


def shareable(record: ErasureRecord, models: Models) -> ErasureRecord:
    """The record with a local model's name in place of its path."""
    if models.hub_id:
        return record
    named = dataclasses.replace(record.base, model=Path(record.base.model).name)
    return dataclasses.replace(record, base=named)


def _diffusers(folder: Path, erasure: _Erasure) -> None:
    for name, source in erasure.modules.items():
        (folder / name).mkdir()
        tensors = (unet_tensors if name == UNET else encoder_tensors)(source, erasure.dtype)
        save_file(tensors, erased.weights_file(folder / name, name), metadata=erasure.metadata)
        config = read_json(source / "config.json")
        config.pop("_name_or_path", None)
        if erasure.dtype and name != UNET:
            config["dtype"] = str(erasure.dtype).removeprefix("torch.")
        write_json(folder / name / "config.json", config)


def _comfyui(folder: Path, erasure: _Erasure) -> None:
    for name, source in erasure.modules.items():  # text encoders: `export` refuses a U-Net
        with foreign_files(source):
            width = int(read_json(source / "config.json").get("hidden_size", 0))
        file = encoder_file(folder, name, width)
        if width not in FILE_NAMES:
            log.warning(
                "%s: no text encoder slot takes a width of %d; ComfyUI has slots for %s",
                file.name, width, ", ".join(f"{w} ({name})" for w, name in FILE_NAMES.items()),
            )  # fmt: skip
        tensors = encoder_tensors(source, erasure.dtype or torch.float16)
        save_file(tensors, file, metadata=erasure.metadata)


def _a1111(folder: Path, erasure: _Erasure) -> None:
    base = erasure.base
    assert base is not None  # checked by `export`
    try:
        check_regular(base)
        with safe_open(base, framework="pt") as file:
            theirs = file.metadata() or {}  # with hashes of the old weights
            metadata = {k: theirs[k] for k in theirs if "hash" not in k} | erasure.metadata
            copy = ("model_ema.",) if UNET in erasure.modules else ()  # it would know the concept
            tensors = {n: file.get_tensor(n) for n in file.keys() if not n.startswith(copy)}  # noqa: SIM118
    except (OSError, RunError, SafetensorError) as error:
        raise ModelError(
            f"not a readable .safetensors file ({reason(error)})", field="base", value=base
        ) from None
    tensors = in_precision(tensors, None, base)
    for name, source in erasure.modules.items():
        if name == UNET:
            own = single_file_unet(tensors, unet_tensors(source), load_unet(source).config, base)
        else:
            count = len(text_encoders(erasure.models.folder))
            own = encoder_in_place(tensors, (name, count), encoder_tensors(source), base)
        for key, tensor in own.items():
            if key not in tensors or tensors[key].shape != tensor.shape:
                shape = tuple(tensors[key].shape) if key in tensors else "missing"
                raise ModelError(
                    f"{key} is {shape}, the erased one is {tuple(tensor.shape)}",
                    field="base", value=base,
                )  # fmt: skip
            tensors |= in_precision({key: tensor}, erasure.dtype or tensors[key].dtype, source)
    without = joined_slug([concept.name for concept in erasure.record.concepts]).replace("+", "-")
    save_file(tensors, folder / f"{base.stem}-without-{without}.safetensors", metadata=metadata)


def _lora(folder: Path, erasure: _Erasure) -> None:
    write_lora(
        folder, erasure.modules, erasure.models, erasure.record, rank=erasure.rank,
        dtype=erasure.dtype, metadata=erasure.metadata,
    )  # fmt: skip


def _hub_folder(folder: Path, erasure: _Erasure) -> None:
    run, scores = erasure.run, erasure.run.folder / "scores.md"
    if run.status("score") != "done" or not scores.is_file():
        raise RunError(f"{run.folder}: a model card needs the table of rates; score first")
    _diffusers(folder, erasure)
    table = scores.read_text(encoding="utf-8")
    rates = run.scores().rates
    section = erasure.pictures(run, folder / "pictures") if erasure.pictures else ""
    text = card(erasure.record, erasure.models, table, rates, erasure.hub_id, section)
    write_text(folder / "README.md", text)


_WRITERS: dict[ExportFormat, Callable[[Path, _Erasure], None]] = {
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "a1111": _a1111,
    "lora": _lora,
    "hub-folder": _hub_folder,
}
