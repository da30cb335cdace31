"""Embedders: models that map texts and images into one space, CLIP's or BLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..checked import hash_folder
from ..errors import ModelError, reason
from ..models.clip import Clip
from ..models.source import check_config
from ..models.text_encoder import load_weights
from ..models.tokens import TokenLimit
from ..reading import read_json

if TYPE_CHECKING:
    from transformers import BlipForImageTextRetrieval, PreTrainedTokenizerBase

EMBEDDING_BATCH = 128


class Embedder(Protocol):
    """Texts and images as unit-norm features of one space, so that their product is their cosine."""

    @property
    def digest(self) -> str:
        """Hash of the weights."""

    @property
    def image_tower(self) -> nn.Module:
        """The module behind the image features; variants that share it share them."""

    @property
    def token_limit(self) -> TokenLimit:
        """Context length of the text tower."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Features, (n, d), on the CPU. Raises DataError for a text that exceeds the context length."""

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Features, (n, d), on the CPU."""


@dataclass(frozen=True)
class ClipEmbedder:
    """The two towers of a CLIP."""

    clip: Clip

    @property
    def digest(self) -> str:
        return self.clip.digest

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.clip.model.vision_model
        return tower

    @property
    def token_limit(self) -> TokenLimit:
        return self.clip.token_limit

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        ids = self.clip.tokens(texts)
        order = self.clip.ends(ids).argsort()  # batches of similar length need little padding
        rows = [
            self.clip.encode_text(self.clip.cut(batch))[0].cpu()
            for batch in torch.split(ids[order], EMBEDDING_BATCH)
        ]
        return torch.cat(rows)[order.argsort()]

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.clip.encode_image(self.clip.process(images)).cpu()


@dataclass(frozen=True)
class BlipEmbedder:
    """The image-text contrastive towers of a BLIP (Li et al. 2022, arXiv 2201.12086).

    Features are the projected [CLS] states, the text's without the image. The matching head is not
    used.
    """

    model: BlipForImageTextRetrieval
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    digest: str

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def token_limit(self) -> TokenLimit:
        limit = int(self.model.config.text_config.max_position_embeddings)
        return TokenLimit(self.tokenizer, limit)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.token_limit.check(texts, "text")
        batches = (texts[i : i + EMBEDDING_BATCH] for i in range(0, len(texts), EMBEDDING_BATCH))
        return torch.cat([self._embed_texts(batch) for batch in batches])

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = (encoded[key].to(self.model.device) for key in ("input_ids", "attention_mask"))
        output = self.model.text_encoder(input_ids=ids, attention_mask=mask)
        return F.normalize(self.model.text_proj(output.last_hidden_state[:, 0]), dim=-1).cpu()

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        hidden_states = self.model.vision_model(pixels.to(self.model.device)).last_hidden_state
        return F.normalize(self.model.vision_proj(hidden_states[:, 0]), dim=-1).cpu()


def is_blip(folder: Path) -> bool:
    """Whether a model folder holds a BLIP. Raises ModelError if it is not a model folder."""
    check_config(folder)
    return bool(read_json(folder / "config.json").get("model_type") == "blip")


def load_blip(folder: Path) -> BlipEmbedder:
    """A `BlipForImageTextRetrieval` folder with tokenizer and image processor.

    Raises ModelError for damaged files, and for another kind of BLIP, which lacks the contrastive
    towers.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, BlipForImageTextRetrieval

    model = load_weights(BlipForImageTextRetrieval, folder).requires_grad_(False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the exception for a damaged file varies between releases
        raise ModelError(
            f"tokenizer or image processor cannot be loaded ({reason(error)})",
            field="clip",
            value=folder,
        ) from None
    return BlipEmbedder(model, tokenizer, processor, hash_folder(folder, "*.safetensors", "*.json"))
