"""CLIP at the edge: loading, tokens, features, what trains, and the copy into the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import DataError, ModelError
from .files import hash_folder, read_json

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

Towers = Literal["text", "both"]
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Encoded:
    """What a model makes of n caption pairs.

    `text` and `image` are unit-norm joint features, (n, projection); `states` are the token states
    that Stable Diffusion 1.x reads, last layer after the norm, (n, tokens, width).
    """

    text: Tensor
    image: Tensor
    states: Tensor


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer and image processor; `digest` is the hash of its weights."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: Any
    digest: str

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

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-norm features (n, projection) and token states (n, tokens, width)."""
        out = self.model.text_model(input_ids=ids)
        return F.normalize(
            self.model.text_projection(out.pooler_output), dim=-1
        ), out.last_hidden_state

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm features, (n, projection), of processed pixels (n, 3, size, size)."""
        out = self.model.vision_model(pixel_values=pixels)
        return F.normalize(self.model.visual_projection(out.pooler_output), dim=-1)

    def pixels(self, paths: Sequence[Path]) -> Tensor:
        """Processed images, (n, 3, size, size). Raises DataError for one that cannot be read."""
        images = [open_image(path) for path in paths]
        return torch.as_tensor(self.processor(images, return_tensors="pt")["pixel_values"])


def open_image(path: Path) -> Image.Image:
    """An RGB image. Raises DataError for a file that is missing or no image."""
    try:
        with Image.open(path, formats=list(IMAGE_FORMATS)) as image:
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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{folder}: weights cannot be loaded ({first})") from None
    wrong = [*info["missing_keys"], *info.get("mismatched_keys", ())]
    if wrong:
        raise ModelError(f"{folder}: weights do not fit, e.g. {next(iter(wrong))}")
    model = model.float().eval()
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{folder}: weights are damaged, {name} is not finite")
    return model


def load_clip(folder: Path) -> Clip:
    """A CLIP folder: `CLIPModel`, tokenizer, image processor; frozen and in evaluation mode."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = load(CLIPModel, folder)
    model.requires_grad_(False)
    return Clip(
        model=model,
        tokenizer=CLIPTokenizer.from_pretrained(folder, local_files_only=True),
        processor=CLIPImageProcessor.from_pretrained(folder, local_files_only=True),
        digest=hash_folder(folder, "*.safetensors", "*.json"),
    )


def trainable(clip: Clip, towers: Towers) -> dict[str, nn.Parameter]:
    """The parameters that unlearning moves.

    The projections and the temperature stay: Stable Diffusion reads neither, so a concept
    forgotten there would still be drawn.
    """
    parts = ("text_model.",) if towers == "text" else ("text_model.", "vision_model.")
    return {n: p for n, p in clip.model.named_parameters() if n.startswith(parts)}


def text_encoder_with(weights: Mapping[str, Tensor], base: Path) -> CLIPTextModel:
    """The pipeline's text encoder, loaded from `base`, with the text tower's `weights` in it.

    `weights` are named as in `CLIPModel`. Raises ModelError where they are not of its shape.
    """
    from transformers import CLIPTextModel

    encoder: CLIPTextModel = load(CLIPTextModel, base)
    inside = {
        n.removeprefix("text_model."): t for n, t in weights.items() if n.startswith("text_model.")
    }
    own = encoder.state_dict()
    prefix = "text_model." if any(n.startswith("text_model.") for n in own) else ""
    inside = {prefix + n: t for n, t in inside.items()}
    for name, tensor in inside.items():
        if name not in own or own[name].shape != tensor.shape:
            there = tuple(own[name].shape) if name in own else "no such layer"
            raise ModelError(
                f"{base}: not the text encoder of this CLIP: {name} is {there}, "
                f"CLIP has {tuple(tensor.shape)}"
            )
    encoder.load_state_dict(inside, strict=False)
    return encoder
