"""CLIP at the edge: what a pipeline reads of it, loading, tokens, features, and the way back."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import DataError, ModelError, reason
from .files import hash_file, hash_folder, key_of, read_json

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

Towers = Literal["text", "both"]
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Tap:
    """Token states that a U-Net reads: what layer number `layer` (from 1) gives, normed or raw."""

    layer: int
    norm: bool


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


@dataclass(frozen=True)
class Encoded:
    """What a model makes of n caption pairs.

    `text` and `image` are unit-norm joint features, (n, projection); `states` are the token states
    that the U-Net reads, (n, tokens, width), of several taps side by side.
    """

    text: Tensor
    image: Tensor
    states: Tensor


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer and image processor; `digest` is the hash of its weights.

    `taps` say which token states are read; none: the last layer after the norm.
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: Any
    digest: str
    taps: tuple[Tap, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the text tower lies."""
        where: torch.device = self.model.text_projection.weight.device
        return where

    @property
    def length(self) -> int:
        """Tokens that the text tower, and Stable Diffusion, always get."""
        return int(self.model.config.text_config.max_position_embeddings)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Padded token ids, (n, length).

        Raises DataError for a text with more tokens than the model has room for.
        """
        ids = self.tokenizer(list(texts))["input_ids"]
        for text, row in zip(texts, ids, strict=True):
            if len(row) > self.length:
                raise DataError(f"caption of {len(row)} tokens, at most {self.length}: {text!r}")
        pad = self.tokenizer.pad_token_id
        return torch.tensor([row + [pad] * (self.length - len(row)) for row in ids])

    def ends(self, ids: Tensor) -> Tensor:
        """The position of the first `<|endoftext|>` of each row, (n,)."""
        found: Tensor = (ids == self.tokenizer.eos_token_id).int().argmax(1)
        return found

    def cut(self, ids: Tensor) -> Tensor:
        """The rows up to the end of the longest, where the token states are of no interest.

        The features stay: the mask is causal and the end is what is pooled.
        """
        return ids[:, : int(self.ends(ids).max()) + 1]

    def encode_text(self, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
        """Features (n, projection), of unit norm or as they are, and token states (n, tokens, width)."""
        tower = self.model.text_model
        out = tower(input_ids=ids.to(self.device), output_hidden_states=bool(self.taps))
        text = self.model.text_projection(out.pooler_output).float()
        text = F.normalize(text, dim=-1) if unit else text
        last = Tap(self.model.config.text_config.num_hidden_layers, norm=True)
        if self.taps in ((), (last,)):
            return text, out.last_hidden_state.float()
        read = []
        for tap in self.taps:
            states = out.hidden_states[tap.layer]
            read.append(tower.final_layer_norm(states) if tap.norm else states)
        return text, torch.cat(read, dim=-1).float()

    def encode_texts(self, ids: Tensor, batch: int = 128) -> tuple[Tensor, Tensor]:
        """`encode_text` of any number of rows, in batches and without gradient."""
        with torch.no_grad():
            parts = [self.encode_text(part) for part in torch.split(ids, batch)]
        return torch.cat([text for text, _ in parts]), torch.cat([states for _, states in parts])

    def encode_image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """Features, (n, projection), of unit norm or as they are, of pixels (n, 3, size, size)."""
        weight = self.model.visual_projection.weight
        out = self.model.vision_model(pixel_values=pixels.to(weight.device))
        image: Tensor = self.model.visual_projection(out.pooler_output).float()
        return F.normalize(image, dim=-1) if unit else image

    def pixels(self, paths: Sequence[Path]) -> Tensor:
        """Processed images, (n, 3, size, size). Raises DataError for one that cannot be read."""
        return self.process([open_image(path) for path in paths])

    def process(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the image tower takes them, (n, 3, size, size)."""
        return torch.as_tensor(self.processor(list(images), return_tensors="pt")["pixel_values"])


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """An RGB image, of a file or of its bytes where they are given.

    Raises DataError for a file that is missing or no image.
    """
    try:
        file = path if data is None else io.BytesIO(data)
        with Image.open(file, formats=list(IMAGE_FORMATS)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: no readable image ({error})") from None


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


def trainable(clip: Clip, towers: Towers) -> dict[str, nn.Parameter]:
    """The parameters that unlearning moves.

    The projections and the temperature stay: Stable Diffusion reads neither, so a concept
    forgotten there would still be drawn.
    """
    parts = ("text_model.",) if towers == "text" else ("text_model.", "vision_model.")
    return {n: p for n, p in clip.model.named_parameters() if n.startswith(parts)}


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
