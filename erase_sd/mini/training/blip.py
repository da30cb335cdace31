"""Trains a miniature BLIP: `python -m erase_sd.mini.training.blip FOLDER`, about ten minutes on a core.

The folder is a `BlipForImageTextRetrieval` with tokenizer and image processor. Only its contrastive towers
are trained, on the scenes of the miniature CLIP; nothing in the package uses it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...files import whole_folder
from ...models.blip import CONTEXT_LENGTH, TEMPERATURE
from ..captions import training_captions
from ..scenes import SIZE, render_scene, sample
from .clip import contrastive
from .data import signed
from .fit import fit
from .rendering import TRAIN_SEED

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipForImageTextRetrieval

SCENES = 12_000
BATCH = 128
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def train_blip(folder: Path, steps: int) -> None:
    """Trains a BLIP on the symmetric contrastive loss, and writes it into `folder`."""
    from transformers import BlipImageProcessor

    seeds = range(TRAIN_SEED, TRAIN_SEED + SCENES)
    images = torch.from_numpy(
        np.stack([np.asarray(render_scene(sample(seed))[0]) for seed in seeds])
    ).permute(0, 3, 1, 2)
    texts = [text for seed in seeds for text in training_captions(sample(seed))]
    with whole_folder(folder) as partial:
        tokenizer = _new_tokenizer(texts, partial)
        model = _new_blip(tokenizer)
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH)["input_ids"]
        tokens = torch.tensor(ids).view(SCENES, -1, CONTEXT_LENGTH)

        def loss(generator: torch.Generator) -> Tensor:
            rows = torch.randint(SCENES, (BATCH,), generator=generator)
            caption = torch.randint(tokens.shape[1], (BATCH,), generator=generator)
            batch = tokens[rows, caption]
            batch = batch[:, : int((batch != tokenizer.pad_token_id).sum(1).max())]
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(
                    input_ids=batch, attention_mask=(batch != tokenizer.pad_token_id).long(),
                    pixel_values=signed(images[rows]), use_itm_head=False,
                ).itm_score  # fmt: skip
            return contrastive(scores.float() / TEMPERATURE)

        fit(
            "blip", model, loss, steps=steps, learning_rate=1e-3, weight_decay=0.1,
            folder=folder.with_name(f"{folder.name}-checkpoint"),
        )  # fmt: skip
        processor = BlipImageProcessor(
            size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        for part in (model, tokenizer, processor):
            part.save_pretrained(partial)


def _new_tokenizer(texts: Iterable[str], folder: Path) -> BertTokenizer:
    """BERT's tokenizer with the words of the texts, and letters for all others."""
    from transformers import BertTokenizer

    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    pieces = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    path = folder / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(pieces)), encoding="utf-8")
    return BertTokenizer(str(path), model_max_length=CONTEXT_LENGTH)


def _new_blip(tokenizer: BertTokenizer) -> BlipForImageTextRetrieval:
    """An untrained BLIP, both towers of 4 layers and width 128; its matching head stays as it is."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    tokens = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT_LENGTH,
        "encoder_hidden_size": 128,
        "bos_token_id": tokenizer.cls_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }
    torch.manual_seed(5)
    model = BlipForImageTextRetrieval(
        BlipConfig(
            text_config=tower | tokens,
            # transformers' own spread of BLIP's image tower is 1e-10, from which nothing is learnt here.
            vision_config=tower | {"image_size": SIZE, "patch_size": 16, "initializer_range": 0.02},
            image_text_hidden_size=128,
        )
    )
    for name, parameter in model.named_parameters():
        if ".crossattention." in name or name.startswith("itm_head."):
            parameter.requires_grad_(False)
    return model


def main() -> None:
    """Trains a BLIP into a new folder; resumes where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.blip", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists; needs a new folder")
    train_blip(options.folder, options.steps)


if __name__ == "__main__":
    main()
