"""Trains the miniature CLIP."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..scenes import SIZE
from .data import TRAIN_SCENES, captions_of, scenes_of, signed
from .fit import fit
from .rendering import TOKENS

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer


def build_clip(folder: Path) -> None:
    """CLIP from scratch, on the symmetric contrastive loss."""
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

    images, ids = scenes_of(folder)[:TRAIN_SCENES], captions_of(folder)[:TRAIN_SCENES]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    clip = _new_clip(tokenizer)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (192,), generator=generator)
        caption = torch.randint(ids.shape[1], (192,), generator=generator)
        tokens = ids[rows, caption]
        # The mask is causal: nothing after the first <|endoftext|> reaches the pooled state.
        longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        pixels = signed(images[rows])
        with torch.autocast("cpu", torch.bfloat16):
            out = clip(input_ids=tokens[:, :longest], pixel_values=pixels)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        return contrastive(out.logits_per_image.float())

    fit("clip", clip, loss, steps=1_100, learning_rate=1e-3, weight_decay=0.1, folder=folder)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder / "clip")
    CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "sd" / "text_encoder")


def _new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP, both towers of 4 layers and width 128."""
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
    }
    config = CLIPConfig(
        text_config=tower | tokens,
        vision_config=tower | {"image_size": SIZE, "patch_size": 8},
        projection_dim=128,
    )
    torch.manual_seed(2)
    return CLIPModel(config)


def contrastive(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of a square similarity matrix with matches on the diagonal."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
