"""Trains the miniature world: `python -m erase_sd.mini.training.build [vae|clip|unet|detector ...]`."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ...files import whole_folder
from .. import WEIGHTS
from ..scenes import CLASSES, SIZE, render, sample
from .data import (
    DETECTOR_SCENES,
    TOKENS,
    TRAIN_SCENES,
    TRAIN_SEED,
    captions_of,
    emphasis,
    frequency,
    latents_of,
    pick,
    scenes_of,
    signed,
    targets,
)
from .fit import fit, steady

if TYPE_CHECKING:
    pass

UNET_STEPS = 15_000
UNET = {
    "sample_size": 16,
    "block_out_channels": (96, 160, 224),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,  # heads, for historical reasons: diffusers' issue 2011
}


def build_vae(folder: Path) -> None:
    """An `AutoencoderTiny` of four channels at a quarter of the size, its latents made smooth.

    A fixed latent noise (std 0.1) with a small penalty on their size is a VAE of fixed variance:
    nearby latents decode alike, which is what the U-Net's small errors need.
    """
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )
    vae = vae.to(memory_format=torch.channels_last)
    images = scenes_of(folder)[:TRAIN_SCENES]

    def loss(generator: torch.Generator) -> Tensor:
        x = pick(images, 32, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latents
            noise = torch.randn(z.shape, generator=generator)
            y = vae.decode(z + 0.1 * noise).sample.float()
        error = y - x
        edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
        sharp: Tensor = error.abs().mean() + 2 * error.square().mean() + edges
        small: Tensor = z.float().square().mean()
        return sharp + 5e-4 * small

    fit("vae", vae, loss, steps=2_500, rate=2e-3, folder=folder)
    with torch.no_grad():
        z = torch.cat([vae.encode(signed(x)).latents for x in torch.split(images[:2048], 64)])
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))
    vae.save_pretrained(folder / "sd" / "vae")


def build_clip(folder: Path) -> None:
    """CLIP from scratch: both towers 4 layers x 128, the symmetric contrastive loss."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

    images, ids = (of(folder)[:TRAIN_SCENES] for of in (scenes_of, captions_of))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(2)
    clip = CLIPModel(
        CLIPConfig(
            text_config=dict(**tower, **ends, vocab_size=len(tokenizer), max_position_embeddings=TOKENS, projection_dim=128),
            vision_config=dict(**tower, image_size=SIZE, patch_size=8, projection_dim=128),
            projection_dim=128,
        )
    )  # fmt: skip

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (192,), generator=generator)
        one = torch.randint(ids.shape[1], (192,), generator=generator)
        tokens = ids[rows, one]
        # Nothing after the first <|endoftext|> reaches the pooled state: the mask is causal.
        longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        pixels = signed(images[rows])
        with torch.autocast("cpu", torch.bfloat16):
            out = clip(input_ids=tokens[:, :longest], pixel_values=pixels)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        return _contrastive(out.logits_per_image.float())

    fit("clip", clip, loss, steps=1_100, rate=1e-3, decay=0.1, folder=folder)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder / "clip")
    CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "sd" / "text_encoder")


def _contrastive(logits: Tensor) -> Tensor:
    """Symmetric cross entropy of a square similarity matrix, matches on the diagonal."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def build_unet(folder: Path) -> None:
    """The U-Net, conditioned as SD 1.x is: all 32 last hidden states, padded, no mask.

    v-prediction on a cosine schedule, one prompt in ten empty, an average of the weights kept.
    """
    from diffusers import (
        AutoencoderTiny,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextModel, CLIPTokenizer

    sd = folder / "sd"
    tokenizer = CLIPTokenizer.from_pretrained(sd / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", use_safetensors=True)
    latents, ids = latents_of(folder, scenes_of(folder)), captions_of(folder)
    weights, often = emphasis(len(latents)), frequency(len(latents))
    empty = torch.tensor(tokenizer([""], padding="max_length")["input_ids"])
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    alphas = scheduler.alphas_cumprod
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**UNET)
    unet.set_attn_processor(
        AttnProcessor()
    )  # on a CPU a third faster than the fused kernel's backward

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.multinomial(often, 32, replacement=True, generator=generator)
        one = torch.randint(ids.shape[1], (32,), generator=generator)
        blank = torch.rand(32, generator=generator) < 0.1
        tokens = torch.where(blank[:, None], empty, ids[rows, one])
        # One time in each of 32 strata: less noise in the loss than 32 free draws. More of them in
        # much noise, where it is settled which thing goes where.
        share = (torch.arange(32) + torch.rand(32, generator=generator)) / 32
        times = (share ** (2 / 3) * len(alphas)).long()
        alpha = alphas[times][:, None, None, None]
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            with torch.no_grad():
                states = encoder(tokens).last_hidden_state
            out = unet(noisy, times, states).sample
        error: Tensor = out.float() - target
        return (weights[rows] * error.square()).mean()

    fit(
        "unet",
        unet,
        loss,
        steps=UNET_STEPS,
        rate=8e-4,
        average=0.999,
        schedule=steady,
        shards=2,
        folder=folder,
    )
    StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(sd / "vae", use_safetensors=True),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(sd)


def build_detector(folder: Path) -> None:
    """ultralytics' `yolov5n` from scratch, on renders of which half went through the VAE.

    Trained with the package's own loss; fed 128 px, twice the images' size.
    """
    from diffusers import AutoencoderTiny
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(4)
    model = DetectionModel("yolov5n.yaml", nc=len(CLASSES), verbose=False)
    model.args = get_cfg()
    vae = AutoencoderTiny.from_pretrained(folder / "sd" / "vae", use_safetensors=True)
    images = scenes_of(folder)[:DETECTOR_SCENES]
    boxes = [targets(render(sample(TRAIN_SEED + i))[1]) for i in range(DETECTOR_SCENES)]

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (48,), generator=generator)
        x = images[rows].float().div(255)
        with torch.no_grad():
            z = vae.encode(x[::2] * 2 - 1).latents
            z = z + 0.15 * torch.randn(z.shape, generator=generator)
            x[::2] = vae.decode(z).sample.div(2).add(0.5).clamp(0, 1)
        flips = torch.rand(len(rows), generator=generator) < 0.5
        x = torch.where(flips[:, None, None, None], x.flip(-1), x)
        found = torch.cat(
            [F.pad(boxes[row], (1, 0), value=i) for i, row in enumerate(rows.tolist())]
        )
        flipped = flips[found[:, 0].long()]
        found[:, 2] = torch.where(flipped, 1 - found[:, 2], found[:, 2])
        batch = {
            "img": F.interpolate(x, scale_factor=2, mode="bilinear"),
            "batch_idx": found[:, 0],
            "cls": found[:, 1:2],
            "bboxes": found[:, 2:],
        }
        terms: Tensor = model.loss(batch)[0]
        return terms.sum() / len(rows)

    fit("detector", model, loss, steps=1_600, rate=2e-3, average=0.995, folder=folder)
    save_file(
        {
            name: t.half().contiguous()
            for name, t in model.state_dict().items()
            if t.is_floating_point()
        },
        folder / "detector_fp16.safetensors",
        metadata={
            "architecture": "yolov5n.yaml",
            "names": json.dumps(CLASSES),
            "size": str(2 * SIZE),
        },
    )


def install(folder: Path, to: Path = WEIGHTS) -> None:
    """Puts what was trained into the package, as half-precision safetensors."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel

    with whole_folder(to) as world:
        shutil.copytree(folder / "sd", world / "sd")
        shutil.copytree(folder / "clip", world / "clip")
        for kind, part in (
            (AutoencoderTiny, "sd/vae"),
            (UNet2DConditionModel, "sd/unet"),
            (CLIPModel, "clip"),
        ):
            kind.from_pretrained(folder / part).half().save_pretrained(world / part)
        # Rounded alike, but stored in full: transformers loads a half-precision text encoder as
        # such, diffusers a half-precision U-Net as float32, and the two would not meet.
        encoder = CLIPTextModel.from_pretrained(folder / "sd" / "text_encoder")
        encoder.half().float().save_pretrained(world / "sd" / "text_encoder")
        shutil.copy(folder / "detector_fp16.safetensors", world / "detector.safetensors")


PARTS = {"vae": build_vae, "clip": build_clip, "unet": build_unet, "detector": build_detector}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.build", description=__doc__
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("build/mini"))
    options = parser.parse_args()
    for part in options.parts:
        PARTS[part](options.out)
    if set(options.parts) == set(PARTS):
        install(options.out)


if __name__ == "__main__":
    main()
