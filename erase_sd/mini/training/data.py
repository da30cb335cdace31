"""Training data of the miniature models: pixels, token ids, latents and boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..scenes import CLASSES, SIZE, Box, render_scene, sample
from .rendering import TOKENS, TRAIN_SEED, training_texts

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SCENES = 120_000
"""Scenes that train the U-Net; with a quarter of them it memorised some layouts."""
TRAIN_SCENES = 30_000
"""The first of these scenes also train the VAE, the tokenizer and CLIP."""
DETECTOR_SCENES = 8_000
"""The first of these scenes also train the detector."""


def scenes_of(folder: Path) -> Tensor:
    """Training images, uint8, (scenes, 3, 64, 64); rendered once, then read from `folder`."""
    path = folder / "scenes.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.stack(
            [np.asarray(render_scene(sample(TRAIN_SEED + i))[0]) for i in range(SCENES)]
        )
        np.save(path, pixels.transpose(0, 3, 1, 2))
    return torch.from_numpy(np.load(path))


def signed(pixels: Tensor) -> Tensor:
    """Pixels 0-255 as floats from -1 to 1."""
    return pixels.float() / 127.5 - 1


def random_images(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A random batch, floats from -1 to 1, (count, 3, 64, 64)."""
    rows = torch.randint(len(images), (count,), generator=generator)
    return signed(images[rows])


def build_tokenizer(folder: Path, texts: list[str]) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's layout: it encodes any text, and `<|endoftext|>` has the
    largest id, where `transformers` pools CLIP's text."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    splitter = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = splitter.normalizer
    learner.pre_tokenizer = splitter.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=4096, min_frequency=2, initial_alphabet=letters, end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder / "sd" / "tokenizer")
    return tokenizer


def captions_of(folder: Path) -> Tensor:
    """Token ids of the training captions, int64, (scenes, 5, 32). Every other caption ends in a full
    stop. Builds the tokenizer on the first call."""
    path = folder / "captions.npy"
    if not path.exists():
        seeds = range(TRAIN_SEED, TRAIN_SEED + SCENES)
        texts = [text for seed in seeds for text in training_texts(sample(seed))]
        tokenizer = build_tokenizer(folder, texts[: 5 * TRAIN_SCENES])
        ids = tokenizer(texts, padding="max_length")["input_ids"]
        np.save(path, np.array(ids, dtype=np.int16).reshape(SCENES, -1, TOKENS))
    return torch.from_numpy(np.load(path)).long()


def latents_of(folder: Path, images: Tensor) -> Tensor:
    """Scaled latents of the training images, half precision, (scenes, 4, 16, 16)."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(folder / "sd" / "vae", use_safetensors=True)
    path = folder / "latents.npy"
    if not path.exists():
        with torch.no_grad():
            parts = [vae.encode(signed(x)).latents for x in torch.split(images, 128)]
        np.save(path, (torch.cat(parts) * vae.config.scaling_factor).half().numpy())
    return torch.from_numpy(np.load(path))


def detector_targets(boxes: list[Box]) -> Tensor:
    """Rows of class, centre x, centre y, width, height (0-1), as ultralytics expects them."""
    rows = [
        (CLASSES.index(name), (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        for name, x0, y0, x1, y1 in boxes
    ]
    return torch.tensor(rows).reshape(-1, 5) / torch.tensor([1.0, SIZE, SIZE, SIZE, SIZE])
