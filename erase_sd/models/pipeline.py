"""A diffusers Stable Diffusion: opening it, what its U-Net reads, one batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import runtime
from ..errors import DataError, ModelError, reason
from ..files import read_json
from .clip import Tap
from .text_encoder import text_encoders

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image


def open_pipeline(folder: Path, dtype: str = "auto") -> DiffusionPipeline:
    """A Stable Diffusion 1, 2 or XL folder on the device, without its safety checker.

    A checker would paint images black, and no detector finds an apple in those. Raises ModelError
    where the folder cannot be opened.
    """
    import diffusers

    text_encoders(folder)  # of a kind that is known, or ends here
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    without: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    takes = inspect.signature(kind.__init__).parameters
    without |= {"feature_extractor": None, "image_encoder": None}
    try:
        pipe: DiffusionPipeline = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=runtime.dtype(dtype),
            **{name: value for name, value in without.items() if name in takes},
        )  # fmt: skip
    except Exception as error:  # what a damaged folder raises differs from release to release
        raise ModelError(f"--model {folder}: cannot be loaded ({reason(error)})") from None
    width = sum(e.config.hidden_size for e in encoders_of(pipe).values())
    if pipe.unet.config.cross_attention_dim != width:
        raise ModelError(
            f"--model {folder}: its U-Net reads {pipe.unet.config.cross_attention_dim} numbers a "
            f"token, its text encoders give {width}"
        )
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe.vae, "enable_slicing"):
        pipe.vae.enable_slicing()  # one image at a time: a batch of decodings needs the most memory
    pipe.to(runtime.device())
    pipe.taps = {e.name: e.taps for e in text_encoders(folder)}
    return pipe


def encoders_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """The pipeline's text encoders by name."""
    names = ("text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


def swap(pipe: DiffusionPipeline, encoders: Mapping[str, Any]) -> None:
    """Puts text encoders into the pipeline, on its device and in its precision.

    Raises ModelError where one is of another width or vocabulary than the pipeline's own.
    """
    for name, encoder in encoders.items():
        own = getattr(pipe, name)
        for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
            here, there = getattr(encoder.config, field), getattr(own.config, field)
            if here != there:
                raise ModelError(f"{name}: {field} is {here}, the pipeline's own has {there}")
        own.cpu()
        setattr(pipe, name, encoder.to(pipe.device, own.dtype))


def image_size(pipe: DiffusionPipeline) -> int:
    """Width and height of an image in pixels."""
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def check_lengths(pipe: DiffusionPipeline, prompts: Mapping[str, str]) -> None:
    """DataError for the first prompt with more tokens than the model reads; `prompts` maps them to
    the file each comes from."""
    most = pipe.tokenizer.model_max_length
    for prompt, file in prompts.items():
        count = len(pipe.tokenizer(prompt)["input_ids"])
        if count > most:
            raise DataError(f"prompt of {count} tokens in {file}, at most {most}: {prompt!r}")


def draw(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> list[Image]:
    """One batch of images; each starts from the noise of its own seed, made on the CPU."""
    side = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    with torch.inference_mode():
        read, empty = embed(pipe, prompts), embed(pipe, [""])
        if getattr(pipe.config, "force_zeros_for_empty_prompt", False):  # SDXL's own way
            empty = {name: torch.zeros_like(states) for name, states in empty.items()}
        out = pipe(
            **read,
            **{f"negative_{name}": t.expand_as(read[name]) for name, t in empty.items()},
            latents=torch.cat(noise).to(pipe.device, pipe.unet.dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
        )
    return list(out.images)


def embed(pipe: DiffusionPipeline, texts: Sequence[str]) -> dict[str, Tensor]:
    """What the U-Net reads of the texts, padded and without a mask, named as the pipeline takes it:
    `prompt_embeds` (n, tokens, width), of SDXL also `pooled_prompt_embeds` (n, projection)."""
    read, found = [], {}
    for name, encoder in encoders_of(pipe).items():
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
        ids = tokenizer(list(texts), padding="max_length", return_tensors="pt")["input_ids"]
        out = encoder(ids.to(pipe.device), output_hidden_states=True)
        layers = encoder.config.num_hidden_layers
        first = pipe.taps[name][0]
        read.append(
            out.last_hidden_state if first == Tap(layers, True) else out.hidden_states[first.layer]
        )
        if len(pipe.taps[name]) > 1:
            found["pooled_prompt_embeds"] = out.text_embeds
    return {"prompt_embeds": torch.cat(read, dim=-1), **found}
