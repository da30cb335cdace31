"""Models of full size with random weights, for timing: nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .. import runtime
from ..methods.base import TokenizedPairs
from ..models.clip import Clip, Tap
from ..models.pipeline import prepare_pipeline
from ..models.presets import resolve
from ..unlearning.captions import TokenizedSets

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

VOCABULARY, LENGTH = 49_408, 77
VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
         "num_hidden_layers": 12, "hidden_act": "quick_gelu"}  # fmt: skip
VIT_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
         "num_hidden_layers": 32, "hidden_act": "gelu"}  # fmt: skip
TOWERS = {"sd15": (VIT_L,), "sdxl": (VIT_L, VIT_G)}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
}
SMALL_UNET = {
    "sample_size": 16, "cross_attention_dim": 64, "block_out_channels": (32, 32, 32, 32),
    "layers_per_block": 1,
}  # fmt: skip


def random_clip(preset: str, number: int, small: bool) -> Clip:
    """A preset's CLIP with a random text tower on the device; its image tower is not read."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(resolve().clip_folder(0))
    text: dict[str, Any] = TOWERS[preset][number] | (SMALL if small else {}) | {
        "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    width, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=width)
    with torch.device(runtime.device()):
        model = CLIPModel(config).eval().requires_grad_(False)
    taps: tuple[Tap, ...] = (Tap(layers, norm=True),)
    if preset == "sdxl":
        taps = (Tap(layers - 1, norm=False), *(taps if number else ()))
    return Clip(model, tokenizer, CLIPImageProcessor(), "random", taps)


def random_pipeline(dtype: torch.dtype, small: bool) -> DiffusionPipeline:
    """Stable Diffusion 1.5 with random weights, ready to generate."""
    import diffusers
    from transformers import CLIPTextModel

    clip = random_clip("sd15", 0, small)
    size: dict[str, Any] = SMALL_UNET if small else {"sample_size": 64, "cross_attention_dim": 768}
    channels = (32, 32, 32, 32) if small else (128, 256, 512, 512)
    with torch.device(runtime.device()):
        encoder = CLIPTextModel(clip.model.config.text_config)
        unet = diffusers.UNet2DConditionModel(**size)
        vae = diffusers.AutoencoderKL(
            block_out_channels=channels, layers_per_block=1 if small else 2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=8 * size["sample_size"],
        )  # fmt: skip
    clip.tokenizer.model_max_length = LENGTH
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.to(dtype).eval(), unet=unet.to(dtype).eval(), text_encoder=encoder.to(dtype).eval(),
        tokenizer=clip.tokenizer, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        requires_safety_checker=False,
    )  # fmt: skip
    prepare_pipeline(pipe, {"text_encoder": clip.taps}, "ddim")
    return pipe


def random_pairs(clip: Clip, forget: int, retain: int, others: int = 512) -> TokenizedSets:
    """Token ids of as many captions, 8 to 20 tokens each; each other split has `others`, by default as
    many as the metrics read."""
    forgotten, retained = (_random_pairs(clip, others, mentions) for mentions in (True, False))
    return TokenizedSets(
        {
            "train": _random_pairs(clip, forget, True),
            "validation": forgotten,
            "held-out": forgotten,
        },
        {"train": _random_pairs(clip, retain, False), "validation": retained, "held-out": retained},
    )


def _random_pairs(clip: Clip, count: int, mentions: bool) -> TokenizedPairs:
    generator = torch.Generator().manual_seed(count)
    tokenizer = clip.tokenizer
    words = torch.randint(300, 900, (count, LENGTH), generator=generator)
    ends = torch.randint(8, 21, (count, 1), generator=generator)
    position = torch.arange(LENGTH)
    ids = torch.where(position < ends, words, tokenizer.pad_token_id)
    ids = ids.scatter(1, ends, tokenizer.eos_token_id)
    ids[:, 0] = tokenizer.bos_token_id
    removed = ids
    image = None
    if mentions:
        removed = ids.clone()
        removed[:, 3] = 500  # another word in the place of the concept
        width = int(clip.model.config.projection_dim)
        image = torch.randn(count, width, generator=generator)
        image = torch.nn.functional.normalize(image, dim=-1)
    return TokenizedPairs(
        [None] * count,  # type: ignore[list-item]  # only their number is read
        ids, image, [], removed, position.expand(count, -1),
        torch.full((count, LENGTH), float(mentions)), torch.full((count,), 3 * int(mentions)),
    )  # fmt: skip
