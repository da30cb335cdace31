"""A CLIP: tokens, features, token states; and the images that go into it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

Towers = Literal["text", "both"]
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Tap:
    """Token states that a U-Net reads: what layer number `layer` (from 1) gives, normed or raw."""

    layer: int
    norm: bool


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


def trainable(clip: Clip, towers: Towers) -> dict[str, nn.Parameter]:
    """The parameters that unlearning moves.

    The projections and the temperature stay: Stable Diffusion reads neither (but SDXL its second
    encoder's projection), so a concept forgotten there would still be drawn.
    """
    parts = ("text_model.",) if towers == "text" else ("text_model.", "vision_model.")
    return {n: p for n, p in clip.model.named_parameters() if n.startswith(parts)}


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """An RGB image, of a file or of its bytes where they are given.

    Raises DataError for a file that is missing or no image.
    """
    try:
        file = path if data is None else io.BytesIO(data)
        with Image.open(file, formats=list(IMAGE_FORMATS)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: no readable image ({error})") from None
