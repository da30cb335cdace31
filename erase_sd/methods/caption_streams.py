"""The residual streams of captions, a layer at a time: what a closed-form edit of the layers needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import TokenizedPairs
from .concept_prompts import spread

if TYPE_CHECKING:
    from transformers import CLIPTextModel

BATCH = 128
"""Captions encoded at once."""
KEPT_BYTES = 2**24
"""Largest input of an output matrix that is kept for the matrix's edit: of a full-size CLIP, those of all
captions would take a gigabyte."""


@dataclass
class CaptionStream:
    """Some captions on their way through the edited tower and the original, a layer at a time.

    No layer runs twice over them, unless what its edit is multiplied with is too large to be kept.
    """

    edited: Tensor
    """The residual stream before the next layer, (n, tokens, width)."""
    target: Tensor
    """That of the concept-removed captions in the original."""
    source: Tensor
    targeted: Tensor
    """Which positions have a target, bool (n, tokens)."""
    arguments: Mapping[str, Any]
    """What a layer takes beside the stream."""
    before: Tensor | None = None
    """The residual stream before the last layer, until the layer's edit."""
    key: Tensor | None = None
    """Input of the last layer's output matrix, (n, tokens, inner), until its edit; None if too large."""

    @classmethod
    def begin(
        cls, tower: CLIPTextModel, layer: int, pairs: TokenizedPairs, mask: Tensor, rows: Tensor
    ) -> CaptionStream:
        """The captions in `rows` at the input of a layer."""
        device = tower.encoder.layers[layer].mlp.fc2.weight.device
        edited, arguments = _layer_input(tower, layer, pairs.ids[rows].to(device))
        target, _ = _layer_input(tower, layer, pairs.concept_removed_ids[rows].to(device))
        source = pairs.source[rows][:, :, None].expand_as(target).to(device)
        return cls(edited, target, source, mask[rows].bool().to(device), arguments)

    def moments(self, edited: Any, original: Any) -> tuple[Tensor, Tensor]:
        """The sums of k k^T and d k^T over all positions that have a target; the streams pass the layer.

        k is the input of the layer's output matrix, d the error of the residual stream after the layer.
        """
        self.before = self.edited
        key, self.edited = self.through(edited, self.before)
        self.key = key if key.nbytes <= KEPT_BYTES else None
        _, self.target = self.through(original, self.target)
        target = self.target.gather(1, self.source)
        key, error = key[self.targeted], (target - self.edited)[self.targeted]
        return _in_float64(key.T @ key), _in_float64(error.T @ key)

    def edit(self, layer: Any, change: Tensor) -> None:
        """The stream after the last layer, whose output matrix, (width, inner), has changed."""
        assert self.before is not None
        if self.key is not None:
            self.edited = self.edited + self.key @ change.T
        else:
            _, self.edited = self.through(layer, self.before)
        self.before = self.key = None

    @torch.no_grad()
    def through(self, layer: Any, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the layer's output matrix, (n, tokens, inner), and the layer's output."""
        keys: list[Tensor] = []
        hook = layer.mlp.fc2.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0]))
        try:
            out: Tensor = layer(stream, **self.arguments)
        finally:
            hook.remove()
        return keys[0], out


def caption_streams(
    tower: CLIPTextModel, layer: int, pairs: TokenizedPairs, mask: Tensor, most: int
) -> list[CaptionStream]:
    """At most `most` captions that have a target, in batches, at the input of a layer."""
    rows = torch.split(spread(torch.nonzero(mask.sum(1)).flatten(), most), BATCH)
    return [CaptionStream.begin(tower, layer, pairs, mask, some) for some in rows]


def mean_moments(
    streams: Sequence[CaptionStream], edited: Any, original: Any
) -> tuple[Tensor, Tensor]:
    """The means of k k^T and d k^T over the streams, which pass a layer of the original."""
    keys = errors = torch.zeros(())
    for stream in streams:
        more_keys, more_errors = stream.moments(edited, original)
        keys, errors = keys + more_keys, errors + more_errors
    count = sum(int(stream.targeted.sum()) for stream in streams)
    return keys / count, errors / count


def _in_float64(moments: Tensor) -> Tensor:
    """On the GPU if it has float64, which Apple's has not."""
    return (moments if moments.is_cuda else moments.cpu()).double()


def _layer_input(
    tower: CLIPTextModel, number: int, ids: Tensor
) -> tuple[Tensor, Mapping[str, Any]]:
    """The residual stream before a layer, (n, tokens, width), and the layer's other arguments."""
    layers = tower.encoder.layers
    inputs: list[tuple[Any, Any]] = []
    hook = layers[number].register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    tower.encoder.layers = layers[: number + 1]
    try:
        with torch.no_grad():
            tower(input_ids=ids)
    finally:
        hook.remove()
        tower.encoder.layers = layers
    (stream, mask), others = inputs[0]
    return stream, {"attention_mask": mask, **others}
