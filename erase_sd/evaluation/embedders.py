"""Two towers with one space: what the CLIP-side measures need of a model, of CLIP's and of BLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError, reason
from ..files import hash_folder, read_json
from ..models.clip import Clip
from ..models.text_encoder import check_config, load

if TYPE_CHECKING:
    from transformers import BlipForImageTextRetrieval, PreTrainedTokenizerBase

BATCH = 128


class Embedder(Protocol):
    """Texts and images as unit-norm rows of one space, so that their product is their cosine."""

    @property
    def digest(self) -> str:
        """Hash of the weights."""

    @property
    def image_tower(self) -> nn.Module:
        """What makes the image features; arms of one tower share them."""

    def fits(self, texts: Sequence[str]) -> list[bool]:
        """Whether the model has room for all of each text."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features, (n, d), on the CPU. Raises DataError for a text that does not fit."""

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Features, (n, d), on the CPU."""


@dataclass(frozen=True)
class ClipEmbedder:
    """A CLIP's towers."""

    clip: Clip

    @property
    def digest(self) -> str:
        return self.clip.digest

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.clip.model.vision_model
        return tower

    def fits(self, texts: Sequence[str]) -> list[bool]:
        ids = self.clip.tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(row) <= self.clip.length for row in ids]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        ids = self.clip.tokens(texts)
        order = self.clip.ends(ids).argsort()
        parts = [
            self.clip.encode_text(self.clip.cut(some))[0].cpu()
            for some in torch.split(ids[order], BATCH)
        ]
        return torch.cat(parts)[order.argsort()]

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.clip.encode_image(self.clip.process(images)).cpu()


@dataclass(frozen=True)
class BlipEmbedder:
    """The image-text contrastive towers of a BLIP (Li et al. 2022, arXiv 2201.12086): the projected
    [CLS] states, of the text without the image. Its matching head is not asked."""

    model: BlipForImageTextRetrieval
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    digest: str

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def length(self) -> int:
        """Tokens that the text tower has room for."""
        return int(self.model.config.text_config.max_position_embeddings)

    def fits(self, texts: Sequence[str]) -> list[bool]:
        ids = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(row) <= self.length for row in ids]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self._texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])

    def _texts(self, texts: Sequence[str]) -> Tensor:
        read = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = (read[key].to(self.model.device) for key in ("input_ids", "attention_mask"))
        states = self.model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(self.model.text_proj(states[:, 0]), dim=-1).cpu()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        states = self.model.vision_model(pixels.to(self.model.device)).last_hidden_state
        return F.normalize(self.model.vision_proj(states[:, 0]), dim=-1).cpu()


def is_blip(folder: Path) -> bool:
    """Whether a model folder holds a BLIP. Raises ModelError where it is no model folder."""
    check_config(folder)
    return bool(read_json(folder / "config.json").get("model_type") == "blip")


def load_blip(folder: Path) -> BlipEmbedder:
    """A folder of `BlipForImageTextRetrieval` with tokenizer and image processor.

    Raises ModelError for another kind of BLIP, which lacks the contrastive towers, and for damage.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, BlipForImageTextRetrieval

    model = load(BlipForImageTextRetrieval, folder).requires_grad_(False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a damaged file raises differs from release to release
        raise ModelError(f"--clip {folder}: tokenizer cannot be loaded ({reason(error)})") from None
    return BlipEmbedder(model, tokenizer, processor, hash_folder(folder, "*.safetensors", "*.json"))
