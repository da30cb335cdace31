"""Text encoders on disk: what a pipeline reads of them, their CLIP, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ModelError, reason
from ..files import hash_file, hash_folder, key_of, read_json
from .clip import Clip, Tap

if TYPE_CHECKING:
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder of a diffusers pipeline: where it lies, and which states the U-Net reads."""

    folder: Path
    taps: tuple[Tap, ...]

    @property
    def name(self) -> str:
        """Of its folder, as the pipeline calls it."""
        return self.folder.name

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder. Padding differs between models, and the U-Net reads the padding."""
        return self.folder.with_name(self.name.replace("text_encoder", "tokenizer"))


def text_encoders(model: Path) -> list[TextEncoder]:
    """The text encoders of a Stable Diffusion folder, with what its U-Net reads of each.

    Stable Diffusion 1 and 2: the last layer after the norm (SD 2's encoder is ViT-H/14 without its
    24th layer). SDXL: the last layer but one, raw, of both, and of the second also the pooled output,
    which is its last layer's. Raises ModelError for another pipeline, and for a missing encoder.
    """
    kind = read_json(model / "model_index.json").get("_class_name")
    if kind not in PIPELINES:
        raise ModelError(f"--model {model}: is a {kind}; needs one of {', '.join(PIPELINES)}")
    found = []
    for number, name in enumerate(PIPELINES[kind]):
        check_config(model / name)
        layers = int(read_json(model / name / "config.json").get("num_hidden_layers", 0))
        last, penultimate = Tap(layers, norm=True), Tap(layers - 1, norm=False)
        if len(PIPELINES[kind]) == 1:
            taps: tuple[Tap, ...] = (last,)
        else:
            taps = (penultimate, last) if number else (penultimate,)
        if min(tap.layer for tap in taps) < 1:
            raise ModelError(f"{model / name}: has {layers} layers, too few to be read")
        found.append(TextEncoder(model / name, taps))
    return found


PIPELINES = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
}


def check_config(folder: Path) -> None:
    """Raises ModelError for a folder without `config.json`, or one that asks for foreign code."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no model folder (no config.json)")
    if "auto_map" in read_json(folder / "config.json"):
        raise ModelError(f"{folder}: its config.json asks to run code of its own; refused")


def load(kind: Any, folder: Path) -> Any:
    """`kind.from_pretrained(folder)` from safetensors only, as float32.

    Raises ModelError for damaged or foreign weights: keys missing or extra, a wrong shape, NaN.
    """
    check_config(folder)
    try:
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # what a damaged file raises differs from release to release
        raise ModelError(f"{folder}: weights cannot be loaded ({reason(error)})") from None
    wrong = [*info["missing_keys"], *info.get("mismatched_keys", ())]
    if wrong:
        raise ModelError(f"{folder}: weights do not fit, e.g. {next(iter(wrong))}")
    model = model.float().eval()
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{folder}: weights are damaged, {name} is not finite")
    return model


def load_clip(folder: Path, encoder: TextEncoder | None = None) -> Clip:
    """A CLIP folder: `CLIPModel`, tokenizer, image processor; frozen and in evaluation mode.

    With a pipeline's `encoder`, the text tower gets its weights, tokenizer and taps: what is unlearned
    is what the pipeline holds. Raises ModelError where the two are not of one architecture.
    """
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    if encoder:
        check_fit(folder, encoder.folder)
    model = load(CLIPModel, folder)
    model.requires_grad_(False)
    if encoder:
        model.load_state_dict(_text_weights(encoder.folder), strict=False)
    return Clip(
        model=model,
        tokenizer=CLIPTokenizer.from_pretrained(
            encoder.tokenizer if encoder else folder, local_files_only=True
        ),
        processor=CLIPImageProcessor.from_pretrained(folder, local_files_only=True),
        digest=hash_folder(folder, "*.safetensors", "*.json"),
        taps=encoder.taps if encoder else (),
    )


def check_fit(clip: Path, encoder: Path) -> None:
    """ModelError, naming the first field, where `encoder` is not CLIP's text tower or its lower part."""
    check_config(clip)
    whole = read_json(clip / "config.json").get("text_config") or {}
    part = read_json(encoder / "config.json")
    if part.get("model_type") != "clip_text_model":
        raise ModelError(f"{encoder}: is a {part.get('model_type')}; needs a clip_text_model")
    from transformers import CLIPTextConfig

    there, here = CLIPTextConfig(**whole), CLIPTextConfig(**part)
    for field in ("hidden_size", "intermediate_size", "num_attention_heads",
                  "max_position_embeddings", "vocab_size", "hidden_act"):  # fmt: skip
        if getattr(there, field) != getattr(here, field):
            raise ModelError(
                f"{encoder}: not the text encoder of --clip {clip}: {field} is "
                f"{getattr(here, field)}, CLIP has {getattr(there, field)}"
            )
    if here.num_hidden_layers > there.num_hidden_layers:
        raise ModelError(
            f"{encoder}: not the text encoder of --clip {clip}: {here.num_hidden_layers} layers, "
            f"CLIP has {there.num_hidden_layers}"
        )


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """A pipeline's text encoder; SDXL's second one is a `CLIPTextModelWithProjection`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    check_config(folder)
    kinds = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
    named = read_json(folder / "config.json").get("architectures") or ["CLIPTextModel"]
    if named[0] not in kinds:
        raise ModelError(f"{folder}: is a {named[0]}; needs one of {', '.join(kinds)}")
    encoder: CLIPTextModel = load(kinds[named[0]], folder)
    return encoder


def _text_weights(folder: Path) -> dict[str, Tensor]:
    """A text encoder's tower, its weights named as in `CLIPModel`; not its projection."""
    parameters = load_text_encoder(folder).named_parameters()
    tower = {f"text_model.{n.removeprefix('text_model.')}": p.detach() for n, p in parameters}
    return {n: p for n, p in tower.items() if not n.startswith("text_model.text_projection")}


def with_weights(clip: Clip, encoder: Path, image_tower: Path | None = None) -> Clip:
    """The same CLIP with the text tower of the folder `encoder`, and with the image tower of a file
    of tensors, named as in `CLIPModel`, where one is given; what stays is shared, not copied.

    Raises ModelError for weights that are damaged or do not fit.
    """
    tensors = _text_weights(encoder)
    shared = {} if image_tower else {id(v): v for v in (clip.model.vision_model,)}
    model = copy.deepcopy(clip.model, shared)
    if image_tower:
        try:
            tensors |= load_file(image_tower)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{image_tower}: weights cannot be loaded ({error})") from None
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape or not tensor.isfinite().all():
            raise ModelError(f"{image_tower or encoder}: {name} does not fit this CLIP")
    model.load_state_dict(tensors, strict=False)
    files = hash_folder(encoder, "*.safetensors"), image_tower and hash_file(image_tower)
    digest = key_of([clip.digest, *files])
    return replace(clip, model=model, digest=digest)


def text_encoder_with(weights: Mapping[str, Tensor], base: Path) -> CLIPTextModel:
    """The pipeline's text encoder, loaded from `base`, with the text tower's `weights` in it.

    `weights` are named as in `CLIPModel`; layers above the encoder's last are left out. Raises
    ModelError where they are not of its shape.
    """
    encoder = load_text_encoder(base)
    own = encoder.state_dict()
    prefix = "text_model." if any(n.startswith("text_model.") for n in own) else ""
    inside = {
        prefix + n.removeprefix("text_model."): t.cpu()
        for n, t in weights.items()
        if n.startswith("text_model.")
    }
    for layer in range(encoder.config.num_hidden_layers, 1000):
        above = f"{prefix}encoder.layers.{layer}."
        kept = {n: t for n, t in inside.items() if not n.startswith(above)}
        if len(kept) == len(inside):
            break
        inside = kept
    for name, tensor in inside.items():
        if name not in own or own[name].shape != tensor.shape:
            there = tuple(own[name].shape) if name in own else "no such layer"
            raise ModelError(
                f"{base}: not the text encoder of this CLIP: {name} is {there}, "
                f"CLIP has {tuple(tensor.shape)}"
            )
    encoder.load_state_dict(inside, strict=False)
    return encoder
