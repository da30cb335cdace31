"""An erased text encoder in the forms that other programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ModelError, RunError, SettingError
from ..files import read_json, whole_folder, write_json, write_text
from ..run import Run
from . import erased as artifact
from .model_card import card
from .presets import Models

Tensors = dict[str, Tensor]

# Widths of the three text towers that people swap, by the names their files go by.
FILE_NAMES = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}

# Where a single-file checkpoint keeps its text encoders: the prefix, and whether in OpenCLIP's names.
PLACES = {
    ("text_encoder", 1): (
        ("cond_stage_model.transformer.", False),
        ("cond_stage_model.model.", True),
        ("text_encoders.clip_l.transformer.", False),
    ),
    ("text_encoder", 2): (("conditioner.embedders.0.transformer.", False),),
    ("text_encoder_2", 2): (("conditioner.embedders.1.model.", True),),
}


def export(
    run: Run, models: Models, to: str, out: Path | None = None, base: Path | None = None
) -> Path:
    """Writes the run's erased encoders as a folder, `out` or `export/<to>` in the run; returns it.

    `to`: `diffusers`, text-encoder folders with the key names that transformers 4 and 5 read;
    `comfyui`, one file an encoder for a text-encoder slot; `a1111`, a single-file checkpoint made from
    the one at `base`; `hub-folder`, the first with a model card. Raises EraseError.
    """
    if to not in FORMS:
        raise SettingError(f"--to {to}: unknown; needs one of {', '.join(FORMS)}")
    if (to == "a1111") != (base is not None):
        raise SettingError(
            "--base: a single-file checkpoint (.safetensors); a1111 needs one, no other does"
        )
    run.require("unlearn", "unlearn first")
    described = artifact.check(run.folder / "erased")
    encoders = {
        name: artifact.folder_of(run.folder / "erased", name)
        for name in described["weights_sha256"]
    }
    out = out or run.folder / "export" / to
    if out.exists() and not (out / "erase.json").is_file():
        raise SettingError(f"--out {out}: is there already, and no export")
    with whole_folder(out) as partial:
        write_json(partial / "erase.json", described)
        FORMS[to](partial, encoders, described, models, run, base)
    return out


def hugging_face(folder: Path) -> Tensors:
    """An encoder's tensors in the names of hub repositories: `text_model.*`, `text_projection.weight`."""
    with safe_open(folder / artifact.WEIGHTS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = ("text_model.", "text_projection.")
    return {n if n.startswith(own) else f"text_model.{n}": t for n, t in sorted(tensors.items())}


def open_clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same in OpenCLIP's names: query, key and value in one matrix, the projection transposed."""
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    whole = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    found = {there: tensors[here] for here, there in whole.items()}
    if "text_projection.weight" in tensors:
        found["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    layer = 0
    while f"text_model.encoder.layers.{layer}.mlp.fc1.weight" in tensors:
        here, there = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for one, other in parts.items():
                found[f"{there}{other}.{kind}"] = tensors[f"{here}{one}.{kind}"]
            three = [tensors[f"{here}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            found[f"{there}attn.in_proj_{kind}"] = torch.cat(three)
        layer += 1
    return found


def _diffusers(folder: Path, encoders: dict[str, Path], *_: Any) -> None:
    for name, source in encoders.items():
        (folder / name).mkdir()
        save_file(hugging_face(source), folder / name / artifact.WEIGHTS, metadata={"format": "pt"})
        write_json(folder / name / "config.json", read_json(source / "config.json"))


def _comfyui(folder: Path, encoders: dict[str, Path], *_: Any) -> None:
    for source in encoders.values():
        width = read_json(source / "config.json")["hidden_size"]
        file = folder / f"{FILE_NAMES.get(width, f'clip_{width}')}.safetensors"
        save_file({n: t.half() for n, t in hugging_face(source).items()}, file)


def _single_file(
    folder: Path,
    encoders: dict[str, Path],
    described: dict[str, Any],
    models: Models,  # noqa: ARG001
    run: Run,  # noqa: ARG001
    base: Path,
) -> None:
    try:
        with safe_open(base, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"--base {base}: no readable .safetensors ({error})") from None
    for name, source in encoders.items():
        places = PLACES[name, len(encoders)]
        found = [place for place in places if any(key.startswith(place[0]) for key in tensors)]
        if not found:
            raise ModelError(f"--base {base}: holds no {name} of this kind of model")
        prefix, as_open_clip = found[0]
        ours = hugging_face(source)
        for key, tensor in (open_clip(ours) if as_open_clip else ours).items():
            own = tensors.get(prefix + key)
            if own is None or own.shape != tensor.shape:
                there = "no such tensor" if own is None else tuple(own.shape)
                raise ModelError(
                    f"--base {base}: {prefix + key} is {there}, the erased encoder has "
                    f"{tuple(tensor.shape)}"
                )
            tensors[prefix + key] = tensor.to(own.dtype)
    without = "-".join(described["concepts"]).replace(" ", "-")
    save_file(tensors, folder / f"{base.stem}-without-{without}.safetensors", metadata=about)


def _hub_folder(
    folder: Path,
    encoders: dict[str, Path],
    described: dict[str, Any],
    models: Models,
    run: Run,
    *_: Any,
) -> None:
    scores = run.folder / "scores.md"
    if run.status("score") != "done" or not scores.is_file():
        raise RunError(f"{run.folder}: a model card holds the score table; score first")
    _diffusers(folder, encoders)
    text = card(described, list(encoders), models, scores.read_text(encoding="utf-8"))
    write_text(folder / "README.md", text)


FORMS: dict[str, Callable[..., None]] = {
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "a1111": _single_file,
    "hub-folder": _hub_folder,
}
