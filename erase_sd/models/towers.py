"""What an unlearning starts from: a pipeline's text encoders with their CLIPs, or a CLIP or BLIP alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import ModelError
from ..files import hash_file
from .blip import is_blip, load_blip
from .clip import Clip
from .pipeline_kinds import TextEncoder, text_encoders
from .presets import Models
from .tensors import read_tensors
from .text_encoder import load_clip

WEIGHTS_FILE = "model.safetensors"
ALONE = "clip"
"""What a CLIP or BLIP without a pipeline is called in the run folder."""


@dataclass(frozen=True)
class LoneTowers(TextEncoder):
    """A CLIP or BLIP that belongs to no pipeline; `folder` is its own."""

    @property
    def name(self) -> str:
        """Its name in the run folder."""
        return ALONE


def encoders_to_unlearn(models: Models) -> list[TextEncoder]:
    """The text encoders of the pipeline, or the CLIP or BLIP alone. Raises ModelError if it is neither."""
    if models.model is None:
        return [LoneTowers(models.clip_folder(0), taps=())]
    return text_encoders(models.folder)


def load_towers(folder: Path, encoder: TextEncoder | None = None) -> Clip:
    """The CLIP or BLIP in `folder`; with a pipeline's `encoder`, CLIP with the encoder's weights."""
    if encoder is None or isinstance(encoder, LoneTowers):
        return load_blip(folder) if is_blip(folder) else load_clip(folder)
    return load_clip(folder, encoder)


def save_towers(folder: Path, weights: Mapping[str, Tensor], base: Path) -> None:
    """Writes the CLIP or BLIP in `base` with the unlearned `weights`: the model, in one file, with
    tokenizer and image processor. Raises ModelError if they do not fit."""
    clip = load_towers(base)
    own = clip.model.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(f"{base}: {name} does not fit this model")
    clip.model.load_state_dict(dict(weights), strict=False)
    clip.model.save_pretrained(folder, max_shard_size="1TB")
    for part in (clip.tokenizer, clip.processor):
        part.save_pretrained(folder)


def erased_towers(folder: Path, original: Clip, image_tower: bool) -> Clip:
    """A copy of the original with the unlearned weights in `folder`; it shares the image tower unless
    `image_tower` says that it was trained.

    Raises ModelError for weights that are damaged or do not fit.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    if not image_tower:
        tensors = {n: t for n, t in tensors.items() if not n.startswith(original.towers[1])}
    return original.with_weights(tensors, image_tower, path, [hash_file(path)])
