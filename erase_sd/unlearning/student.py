"""The model being unlearned."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..methods.base import EncodedPairs, Encodings, Need
from ..models.clip import Clip, FreeEmbeddings, Towers, trainable

LARGE = 500_000_000
"""Parameters of a text tower from which on its activations are computed anew in the backward pass: those
of SDXL's second encoder (695 million) would take 15 GB at the default batch sizes."""


class ClipStudent:
    """A CLIP in training: the `Student` of the methods.

    `parameters` are all that may train, by their names in `CLIPModel`.
    """

    def __init__(
        self, clip: Clip, towers: Towers, dtype: torch.dtype, needs: frozenset[Need]
    ) -> None:
        self.clip, self.dtype, self.needs = clip, dtype, needs
        self.parameters: dict[str, nn.Parameter] = trainable(clip, towers)
        if sum(parameter.numel() for parameter in self.parameters.values()) > LARGE:
            tower = clip.model.text_model
            tower.gradient_checkpointing_enable({"use_reentrant": False})
            tower.train()  # transformers checkpoints in training mode only; CLIP has no dropout

    @property
    def scale(self) -> float:
        """CLIP's temperature, which multiplies similarities."""
        return float(self.clip.model.logit_scale.exp())

    def text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """`Clip.encode_text` in the student's precision."""
        with self.precision():
            return self.clip.encode_text(ids, unit, free)

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """`Clip.encode_image` in the student's precision."""
        with self.precision():
            return self.clip.encode_image(pixels, unit)

    def __call__(self, pairs: EncodedPairs) -> Encodings:
        """Encodes caption pairs. Images are encoded if their tower trains, else the original's used."""
        if "hidden_states" in self.needs:
            text, hidden_states = self.text(pairs.ids)
        else:
            (text, _), hidden_states = self.text(self.clip.cut(pairs.ids)), None
        if pairs.pixels is not None:
            return Encodings(text, self.image(pairs.pixels), hidden_states)
        return pairs.original.with_text(text, hidden_states)

    def precision(self) -> torch.autocast:
        """Autocast for passes through the towers; off in float32."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.clip.device.type, self.dtype if lower else None, enabled=lower)

    def train_only(self, trains: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        """Requires gradients of the parameters that `trains` names, and returns them."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(trains(name))
            parameter.grad = None
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """A copy of all parameters that may train."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Sets parameters that may train."""
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)


def original_of(clip: Clip, towers: Towers) -> Clip:
    """A copy of the model before unlearning; an image tower that does not train is shared."""
    shared = {} if towers == "both" else {id(v): v for v in (clip.model.vision_model,)}
    return dataclasses.replace(clip, model=copy.deepcopy(clip.model, shared))
