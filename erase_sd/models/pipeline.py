"""A diffusers pipeline: opening it, swapping what was erased, generating one batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import runtime
from ..errors import ModelError, SettingError, reason
from .choices import Sampler
from .clip import Tap
from .pipeline_kinds import kind_of, left_out, text_encoders
from .quiet import silence
from .source import check_config, check_sizes, variant_of
from .t5 import denoising_model, embed_with_t5
from .tensors import module_in_precision
from .tokens import TokenLimit
from .unet import UNET, check_shapes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


SCHEDULERS: dict[Sampler, str] = {
    "ddim": "DDIMScheduler",  # Song et al., ICLR 2021, arXiv 2010.02502
    "unipc": "UniPCMultistepScheduler",  # Zhao et al., NeurIPS 2023, arXiv 2302.04867
    "dpm++": "DPMSolverMultistepScheduler",  # DPM-Solver++ 2M, Lu et al., 2022, arXiv 2211.01095
}
"""The diffusers class of each sampler."""


def open_pipeline(
    folder: Path, dtype: runtime.Precision = "auto", sampler: Sampler | None = None
) -> DiffusionPipeline:
    """A Stable Diffusion or FLUX.1 folder on the device, without its safety checker.

    The checker would blacken images, and no detector finds an apple in those. Without a `sampler`, the
    folder's own scheduler runs. Raises ModelError if the folder cannot be opened, and SettingError for
    a sampler of a transformer, which has a scheduler of its own.
    """
    import diffusers

    silence(diffusers.utils.logging)
    taps = {encoder.name: encoder.taps for encoder in text_encoders(folder)}
    kind = getattr(diffusers, kind_of(folder))
    has_unet = (folder / "unet").is_dir()
    for part in ("unet" if has_unet else "transformer", "vae"):
        check_config(folder / part)
    check_sizes(folder / "scheduler" / "scheduler_config.json")
    if sampler and not has_unet:
        raise SettingError(
            f"{kind.__name__} has a scheduler of its own; needs none",
            field="sampler", value=sampler,
        )  # fmt: skip
    omitted: dict[str, Any] = {
        "safety_checker": None, "requires_safety_checker": False, "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,  # SDXL's, which else depends on a package that may be installed
        **dict.fromkeys(left_out(folder)),
    }  # fmt: skip
    parameters = inspect.signature(kind.__init__).parameters
    try:
        pipe: DiffusionPipeline = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True,
            dtype=runtime.dtype(dtype),
            variant=variant_of(folder / ("unet" if has_unet else "transformer")),
            **{name: value for name, value in omitted.items() if name in parameters},
        )  # fmt: skip
    except Exception as error:  # a damaged folder raises different errors in different releases
        raise ModelError(
            f"cannot be loaded ({reason(error)})", field="model", value=folder
        ) from None
    prepare_pipeline(pipe, taps, sampler)
    _check_encoders(pipe, folder)
    _check_finite(pipe, folder)
    return pipe


def _check_encoders(pipe: DiffusionPipeline, folder: Path) -> None:
    """Raises ModelError if the U-Net reads another width; sets context lengths that the folder omits."""
    width = sum(encoder.config.hidden_size for encoder in encoders_of(pipe).values())
    if hasattr(pipe, "unet") and pipe.unet.config.cross_attention_dim != width:
        raise ModelError(
            f"its U-Net reads embeddings of width {pipe.unet.config.cross_attention_dim}, its text "
            f"encoders return {width}",
            field="model",
            value=folder,
        )
    for name, encoder in encoders_of(pipe).items():
        tokenizer, length = tokenizer_of(pipe, name), encoder.config.max_position_embeddings
        if tokenizer.model_max_length > length:  # a folder may not say it, which means 10^30
            tokenizer.model_max_length = length


def prepare_pipeline(
    pipe: DiffusionPipeline, taps: Mapping[str, tuple[Tap, ...]], sampler: Sampler | None = None
) -> None:
    """Moves a loaded pipeline to the device, in the memory layout and with the solver to generate with.

    `taps` are the hidden states that its U-Net reads, by text encoder.
    """
    import diffusers

    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe.vae, "enable_slicing"):
        pipe.vae.enable_slicing()  # one image at a time: decoding a batch needs the most memory
    pipe.to(runtime.device())
    denoiser = denoising_model(pipe)
    if denoiser.dtype != torch.float32:  # convolutions in half precision prefer this layout
        for model in (denoiser, pipe.vae):
            model.to(memory_format=torch.channels_last)
    if sampler:
        kind = getattr(diffusers, SCHEDULERS[sampler])
        # DDIM clips to -1 and 1 unless the configuration says otherwise; latents are larger.
        pipe.scheduler = kind.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.taps = taps


def _check_finite(pipe: DiffusionPipeline, folder: Path) -> None:
    """ModelError for NaN or infinity in any weight, from which every image would be black."""
    for part, module in pipe.components.items():
        weights = module.state_dict() if isinstance(module, torch.nn.Module) else {}
        for name, weight in weights.items():
            if not torch.isfinite(weight).all():
                raise ModelError(
                    f"damaged, {part}.{name} is not finite in {str(weight.dtype)[6:]}",
                    field="model", value=folder,
                )  # fmt: skip


def encoders_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """The CLIP text encoders of a pipeline of `open_pipeline`, by name."""
    return {name: getattr(pipe, name) for name in pipe.taps}


def swap(pipe: DiffusionPipeline, modules: Mapping[str, Any]) -> None:
    """Puts text encoders, a U-Net, or both into the pipeline, on its device and in its precision.

    Raises ModelError if the width, depth or vocabulary of an encoder, or the shape of one of the U-Net's
    parameters, differs from the pipeline's own, or a weight is not finite in the pipeline's precision.
    """
    for name, module in modules.items():
        own = getattr(pipe, name)
        if own is module:
            continue
        if name == UNET:
            check_shapes(name, module.state_dict(), own)
        else:
            _check_encoder(name, module, own)
        module_in_precision(module, own.dtype, name)
        own.cpu()
        setattr(pipe, name, module.to(pipe.device))
        if name == UNET and own.dtype != torch.float32:
            module.to(memory_format=torch.channels_last)


def _check_encoder(name: str, encoder: Any, own: Any) -> None:
    for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(encoder.config, field), getattr(own.config, field)
        if ours != theirs:
            raise ModelError(f"{name}: {field} is {ours}, the pipeline's own has {theirs}")


def image_size(pipe: DiffusionPipeline) -> int:
    """Width and height of a generated image in pixels."""
    size = getattr(pipe, "default_sample_size", None) or pipe.unet.config.sample_size
    return int(size * pipe.vae_scale_factor)


def pipeline_token_limit(pipe: DiffusionPipeline) -> TokenLimit:
    """Which prompts the pipeline reads to their end."""
    return TokenLimit(pipe.tokenizer, int(pipe.tokenizer.model_max_length))


def embed(
    pipe: DiffusionPipeline, texts: Sequence[str], encoders: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """What the U-Net reads of the texts, padded and without a mask, named as the pipeline's arguments.

    `prompt_embeds` (n, tokens, width), except with Stable Diffusion 1 and 2 also
    `pooled_prompt_embeds` (n, projection). A transformer reads T5's hidden states too. Other `encoders`
    of a U-Net may take the place of the pipeline's own.
    """
    if not hasattr(pipe, "unet"):
        return embed_with_t5(pipe, list(texts))
    encoders, ids = encoders or encoders_of(pipe), {}
    for name in encoders:
        tokenizer = tokenizer_of(pipe, name)
        ids[name] = tokenizer(list(texts), padding="max_length", return_tensors="pt")["input_ids"]
    return embed_ids(pipe, encoders, ids)


def tokenizer_of(pipe: DiffusionPipeline, encoder: str) -> Any:
    """The tokenizer of the text encoder of that name."""
    return getattr(pipe, encoder.replace("text_encoder", "tokenizer"))


def embed_ids(
    pipe: DiffusionPipeline, encoders: Mapping[str, Any], ids: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`embed` of padded token ids (n, tokens), by any text encoders of the pipeline's kind."""
    hidden_states, pooled = [], {}
    for name, encoder in encoders.items():
        out = encoder(ids[name].to(pipe.device), output_hidden_states=True)
        last = Tap(encoder.config.num_hidden_layers, norm=True)
        first = pipe.taps[name][0]
        hidden_states.append(
            out.last_hidden_state if first == last else out.hidden_states[first.layer]
        )
        if len(pipe.taps[name]) > 1:
            pooled["pooled_prompt_embeds"] = out.text_embeds
    return {"prompt_embeds": torch.cat(hidden_states, dim=-1), **pooled}
