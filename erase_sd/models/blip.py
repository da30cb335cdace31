"""A BLIP behind CLIP's interface: its image-text contrastive towers (Li et al. 2022, arXiv 2201.12086)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelError
from ..reading import read_json
from .clip import Clip, FreeEmbeddings
from .source import check_config, fingerprint, foreign_files
from .text_encoder import load_weights

CONTEXT_LENGTH = 64
"""Maximum number of tokens of a caption: BLIP was trained on 35, and its table of positions has 512."""
TEMPERATURE = 0.07
"""BLIP's contrastive temperature before training; `transformers` keeps no trained one."""
ARCHITECTURE = "BlipForImageTextRetrieval"


class Blip(Clip):
    """A `BlipForImageTextRetrieval`. Features are the projected [CLS] states, the text's without the
    image; the matching head, which reads both, is not used."""

    @functools.cached_property
    def processor(self) -> Any:
        """The image processor. Raises ModelError for a damaged file."""
        from transformers import AutoImageProcessor

        with foreign_files(self.folder):
            return AutoImageProcessor.from_pretrained(self.folder, local_files_only=True)

    @property
    def device(self) -> torch.device:
        """Device of the text tower."""
        device: torch.device = self.model.text_proj.weight.device
        return device

    @property
    def scale(self) -> float:
        """The inverse of TEMPERATURE."""
        return 1 / TEMPERATURE

    @property
    def towers(self) -> tuple[str, str]:
        """Prefixes of the parameters of the text and of the image tower."""
        return "text_encoder.", "vision_model."

    @property
    def blocks(self) -> tuple[str, str]:
        """Prefixes of the parameters in the transformer blocks of the text and of the image tower."""
        return "text_encoder.encoder.layer.", "vision_model.encoder.layers."

    @property
    def length(self) -> int:
        """Context length: texts are padded to this many tokens."""
        return min(int(self.model.config.text_config.max_position_embeddings), CONTEXT_LENGTH)

    def ends(self, ids: Tensor) -> Tensor:
        """Position of the last token of each row, [SEP], (n,)."""
        ends: Tensor = (ids != self.tokenizer.pad_token_id).sum(1) - 1
        return ends

    def encode_text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (n, projection), normalized if `unit`, and the [CLS] states, (n, 1, width).

        The hidden states of the other tokens are not returned: no U-Net reads them.
        """
        assert free is None  # only losses on hidden states have free embeddings
        ids = ids.to(self.device)
        mask = ids != self.tokenizer.pad_token_id
        out = self.model.text_encoder(input_ids=ids, attention_mask=mask.long())
        state = out.last_hidden_state[:, :1]
        text = self.model.text_proj(state[:, 0]).float()
        return F.normalize(text, dim=-1) if unit else text, state.float()

    def encode_image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """Features (n, projection), normalized if `unit`, of pixels (n, 3, size, size)."""
        out = self.model.vision_model(pixel_values=pixels.to(self.model.vision_proj.weight.device))
        image: Tensor = self.model.vision_proj(out.last_hidden_state[:, 0]).float()
        return F.normalize(image, dim=-1) if unit else image


def is_blip(folder: Path) -> bool:
    """Whether a model folder holds a BLIP. Raises ModelError if it is not a model folder."""
    check_config(folder)
    return bool(read_json(folder / "config.json").get("model_type") == "blip")


def load_blip(folder: Path) -> Blip:
    """A `BlipForImageTextRetrieval` folder with tokenizer and image processor; frozen.

    Raises ModelError for damaged files, and for another kind of BLIP, which lacks the contrastive
    towers.
    """
    from transformers import AutoTokenizer, BlipForImageTextRetrieval

    with foreign_files(folder):
        architectures = read_json(folder / "config.json").get("architectures") or [ARCHITECTURE]
        if (architecture := str(architectures[0])) != ARCHITECTURE:
            raise ModelError(
                f"{folder}: is a {architecture}, without contrastive towers; needs a {ARCHITECTURE}"
            )
    model = load_weights(BlipForImageTextRetrieval, folder).requires_grad_(False)
    with foreign_files(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Blip(model=model, tokenizer=tokenizer, folder=folder, digest=fingerprint(folder))
