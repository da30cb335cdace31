"""Trains the packaged U-Net on, on a GPU: `python -m erase_sd.mini.training.refine --minutes 5`.

The scenes come from `erase_sd.mini.training.rendering`. The training is bounded by time, so the
result depends on the machine's pace. It is written to a folder in half precision; whoever installs
it into the package runs `erase_sd.mini.training.check` on it first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import WEIGHTS
from .data import signed
from .fit import fit, one_cycle
from .rendering import ARRAYS, CHUNK, render
from .unet import UNetScenes, VelocityLoss, normalized


def load_scenes(folder: Path, device: torch.device) -> UNetScenes:
    """The rendered scenes in `folder`, encoded by the packaged VAE, all on `device`."""
    from diffusers import AutoencoderTiny

    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}
    vae = AutoencoderTiny.from_pretrained(WEIGHTS / "sd" / "vae", use_safetensors=True)
    vae = vae.float().to(device).eval()
    chunks = torch.split(torch.from_numpy(arrays["scenes"]), CHUNK)
    with torch.no_grad():
        latents = [vae.encode(signed(pixels.to(device))).latents.half() for pixels in chunks]
    return UNetScenes(
        torch.cat(latents) * vae.config.scaling_factor,
        torch.from_numpy(arrays["captions"]).to(device),
        normalized(torch.from_numpy(arrays["weights"]).to(device)),
        torch.from_numpy(arrays["frequencies"]).to(device),
    )


def _loss(training: UNetScenes, device: torch.device, batch: int) -> VelocityLoss:
    """The loss of the packaged U-Net, in channels_last, with the packaged text encoder."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    sd = WEIGHTS / "sd"
    unet = UNet2DConditionModel.from_pretrained(sd / "unet", use_safetensors=True).float()
    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", use_safetensors=True).float()
    empty = CLIPTokenizer.from_pretrained(sd / "tokenizer")([""], padding="max_length")
    alphas: Tensor = DDIMScheduler.from_pretrained(sd / "scheduler").alphas_cumprod
    return VelocityLoss(
        unet.to(device, memory_format=torch.channels_last), encoder.to(device).eval(), training,
        torch.tensor(empty["input_ids"], device=device), alphas.to(device), batch,
    )  # fmt: skip


def refine(
    out: Path, device: torch.device, minutes: float, scenes: int, batch: int, learning_rate: float
) -> None:
    """Trains for `minutes` on batches of `batch` out of `scenes` scenes; writes `out`/unet."""
    torch.backends.cudnn.benchmark = True
    render(out, scenes)
    print("scenes rendered", flush=True)
    loss = _loss(load_scenes(out, device), device, batch)
    print("scenes encoded", flush=True)
    fit(
        "unet-refined", loss.unet, loss, steps=1_000_000, learning_rate=learning_rate,
        average=0.999, schedule=one_cycle, folder=out, save_every=1_000_000, minutes=minutes,
    )  # fmt: skip
    loss.unet.half().save_pretrained(out / "unet", max_shard_size="12MB")


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.refine", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("build/refined"))
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    refine(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
