"""Trains the miniature world: `python -m erase_sd.mini.training.build [vae|clip|unet|detector ...]`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ...files import whole_folder
from .. import WEIGHTS
from .clip import build_clip
from .detector import build_detector
from .unet import build_unet
from .vae import build_vae

MODELS = {"vae": build_vae, "clip": build_clip, "unet": build_unet, "detector": build_detector}


def install(folder: Path, to: Path = WEIGHTS) -> None:
    """Copies the trained models into the package, as half-precision safetensors."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel

    with whole_folder(to) as weights:
        shutil.copytree(folder / "sd", weights / "sd")
        shutil.copytree(folder / "clip", weights / "clip")
        for kind, name in (
            (AutoencoderTiny, "sd/vae"),
            (UNet2DConditionModel, "sd/unet"),
            (CLIPModel, "clip"),
        ):
            kind.from_pretrained(folder / name).half().save_pretrained(weights / name)
        # Rounded like the rest but stored in full: transformers keeps a text encoder in the
        # precision of its file, diffusers loads a U-Net as float32, and the two have to match.
        encoder = CLIPTextModel.from_pretrained(folder / "sd" / "text_encoder")
        encoder.half().float().save_pretrained(weights / "sd" / "text_encoder")
        shutil.copy(folder / "detector_fp16.safetensors", weights / "detector.safetensors")


def main() -> None:
    """Trains the named models in order; after all four, installs them into the package."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.build", description=__doc__
    )
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("build/mini"))
    options = parser.parse_args()
    for name in options.models:
        MODELS[name](options.out)
    if set(options.models) == set(MODELS):
        install(options.out)


if __name__ == "__main__":
    main()
