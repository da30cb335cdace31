"""Embedders: the two towers of a CLIP or BLIP as maps of texts and images into one space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..models.clip import Clip
from ..models.tokens import TokenLimit
from ..sharing import each

EMBEDDING_BATCH = 128


@dataclass(frozen=True)
class Embedder:
    """Texts and images as unit-norm features of one space, so that their product is their cosine."""

    clip: Clip
    """A CLIP, or a BLIP behind its interface."""

    @property
    def image_tower(self) -> nn.Module:
        """The module behind the image features; variants that share it share them."""
        tower: nn.Module = self.clip.model.vision_model
        return tower

    @property
    def token_limit(self) -> TokenLimit:
        """Context length of the text tower."""
        return self.clip.token_limit

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Features, (n, d), on the CPU, by processes in step. Raises DataError for a text that exceeds
        the context length."""
        ids = self.clip.tokens(texts)
        order = self.clip.ends(ids).argsort()  # batches of similar length need little padding
        rows = each(
            torch.split(ids[order], EMBEDDING_BATCH),
            lambda batch: self.clip.encode_text(self.clip.cut(batch))[0].cpu(),
        )
        return torch.cat(rows)[order.argsort()]

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Features, (n, d), on the CPU."""
        return self.clip.encode_image(self.clip.process(images)).cpu()
