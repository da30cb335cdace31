"""Trains the packaged U-Net on, on a GPU: `python -m erase_sd.mini.training.refine --minutes 5`.

Scenes are rendered by all CPU cores while the U-Net trains on those that are ready, so the result
depends on the machine's pace. It is written to a folder, in half precision; whoever installs it
into the package runs `erase_sd.mini.training.check` on it first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import WEIGHTS
from ..captions import training_captions
from ..scenes import render_scene, sample
from .data import TOKENS, TRAIN_SEED, loss_weights, sampling_weights, signed
from .fit import fit, plateau
from .unet import UNetScenes, VelocityLoss

CHUNK = 2_000
"""Scenes that a worker renders at a time."""
COUNT_WEIGHTS = {2: 1.2, 3: 1.6}
"""How often scenes of two and three things are sampled, relative to the others: what the packaged
U-Net still confuses."""

Chunk = tuple[int, NDArray[np.uint8], NDArray[np.int16], Tensor, Tensor]
"""First row, pixels, token ids, loss weights, sampling frequencies."""


def render_chunk(first: int) -> Chunk:
    """Renders CHUNK training scenes from row `first` on, with five captions each."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "sd" / "tokenizer")
    scenes = [sample(TRAIN_SEED + first + i) for i in range(CHUNK)]
    pixels = np.stack([np.asarray(render_scene(scene)[0]) for scene in scenes])
    # Every other caption ends in a full stop.
    texts = [
        text + (" ." if i % 2 else "")
        for scene in scenes
        for i, text in enumerate(training_captions(scene))
    ]
    ids = np.array(tokenizer(texts, padding="max_length")["input_ids"], np.int16)
    counts = torch.tensor([COUNT_WEIGHTS.get(len(scene.things), 1.0) for scene in scenes])
    frequencies = sampling_weights(scenes) * counts
    return (
        first, pixels.transpose(0, 3, 1, 2), ids.reshape(CHUNK, -1, TOKENS), loss_weights(scenes),
        frequencies,
    )  # fmt: skip


def _fill(
    training: UNetScenes, chunks: Iterator[Chunk], ready: threading.Event, stop: threading.Event
) -> None:
    """Encodes the rendered scenes; a scene is sampled from the moment its frequency is set."""
    from diffusers import AutoencoderTiny

    device = training.latents.device
    vae = AutoencoderTiny.from_pretrained(WEIGHTS / "sd" / "vae", use_safetensors=True)
    vae = vae.float().to(device).eval()
    with torch.no_grad():
        for first, pixels, ids, weights, frequencies in chunks:
            rows = slice(first, first + CHUNK)
            images = signed(torch.from_numpy(pixels).to(device))
            latents = torch.cat([vae.encode(x).latents for x in torch.split(images, 250)])
            training.latents[rows] = latents * vae.config.scaling_factor
            training.ids[rows] = torch.from_numpy(ids).to(device)
            training.weights[rows] = weights.to(device)
            training.frequencies[rows] = frequencies.to(device)
            ready.set()
            if stop.is_set():
                return


def _empty_scenes(count: int, device: torch.device) -> UNetScenes:
    return UNetScenes(
        latents=torch.zeros(count, 4, 16, 16, dtype=torch.half, device=device),
        ids=torch.zeros(count, 5, TOKENS, dtype=torch.int16, device=device),
        weights=torch.zeros(count, 1, 16, 16, dtype=torch.half, device=device),
        frequencies=torch.zeros(count, device=device),
    )


def refine(
    out: Path, device: torch.device, minutes: float, scenes: int, batch: int, learning_rate: float
) -> None:
    """Trains for `minutes` on batches of `batch` scenes, out of `scenes`; writes `out`/unet."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    sd, scenes = WEIGHTS / "sd", -(-scenes // CHUNK) * CHUNK
    torch.backends.cudnn.benchmark = True
    unet = UNet2DConditionModel.from_pretrained(sd / "unet", use_safetensors=True).float()
    unet = unet.to(device, memory_format=torch.channels_last)
    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", use_safetensors=True).float()
    encoder = encoder.to(device).eval()
    empty = CLIPTokenizer.from_pretrained(sd / "tokenizer")([""], padding="max_length")
    training = _empty_scenes(scenes, device)
    ready, stop = threading.Event(), threading.Event()
    alphas = DDIMScheduler.from_pretrained(sd / "scheduler").alphas_cumprod.to(device)
    blank = torch.tensor(empty["input_ids"], device=device)
    loss = VelocityLoss(unet, encoder, training, blank, alphas, batch)
    workers = max(1, (os.cpu_count() or 1) - 2)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        chunks = pool.imap_unordered(render_chunk, range(0, scenes, CHUNK))
        filling = threading.Thread(target=_fill, args=(training, chunks, ready, stop), daemon=True)
        filling.start()
        ready.wait()
        fit(
            "unet-refined", unet, loss, steps=1_000_000, learning_rate=learning_rate,
            average=0.9995, schedule=plateau, folder=out, save_every=1_000_000, minutes=minutes,
        )  # fmt: skip
        stop.set()
        filling.join()
        print(f"{int((training.frequencies > 0).sum())} of {scenes} scenes were rendered")
    unet.half().save_pretrained(out / "unet", max_shard_size="12MB")


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.refine", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("build/refined"))
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--scenes", type=int, default=600_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    refine(**vars(parser.parse_args()))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
