"""Closed-form projection (this project), after MEMIT (arXiv 2210.07229) and UCE (arXiv 2308.14761)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from .base import ClosedFormMethod, Need, Task, TokenizedPairs, minimum

if TYPE_CHECKING:
    from transformers import CLIPTextModel

BATCH = 128
"""Captions encoded at once."""


@dataclass(frozen=True, kw_only=True)
class Projection(ClosedFormMethod):
    """This project, after MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229): ridge regression.

    Layer by layer, the output matrix of the text tower's MLP is set to the least-squares solution
    that gives forget captions the original's residual stream of the concept-removed captions, and
    retain captions their own. Differs: MEMIT spreads the edit of a subject over several layers and
    represents everything else by a covariance; UCE (Gandikota et al., WACV 2024, arXiv 2308.14761)
    solves the same problem in the U-Net's cross-attention. Here, every layer and position has a target.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"clip_layers"})
    trained_parameters: ClassVar[str] = "the output matrices of the text tower's MLPs"
    first_layer: int = minimum(0, 0)
    """First layer to edit, counted from 0; the last is the last that the U-Net reads (ours: all)."""
    retain_weight: float = 0.3
    """Weight of the retain captions' mean squared change, relative to the forget captions' error
    (ours)."""
    ridge: float = 1e-4
    """Weight of the matrix's change, as a share of the inputs' mean square (ours)."""
    captions: int = minimum(1, 500)
    """Maximum number of captions used from each set (ours, for two CPU cores)."""

    def solve(self, task: Task) -> Mapping[str, Tensor]:
        """The edited layers' `mlp.fc2.weight`, (width, inner)."""
        original: CLIPTextModel = task.clip.model.text_model
        edited = copy.deepcopy(original)
        layers = max((tap.layer for tap in task.clip.taps), default=len(edited.encoder.layers))
        if self.first_layer >= layers:
            raise SettingError(
                f"needs at most {layers - 1} for this model, got {self.first_layer}",
                field="hyperparameters", value="first_layer",
            )  # fmt: skip
        sets = (
            (task.forget, task.forget.mask, 1.0),
            (task.retain, torch.ones_like(task.retain.mask), self.retain_weight),
        )
        solution = {}
        for number in range(self.first_layer, layers):
            weight = edited.encoder.layers[number].mlp.fc2.weight
            keys = errors = torch.zeros(())
            for pairs, mask, share in sets:
                rows = _evenly_spaced(mask, self.captions)
                set_keys, set_errors = _moments(original, edited, number, pairs, mask, rows)
                keys, errors = keys + share * set_keys, errors + share * set_errors
            change = regression(keys, errors, self.ridge).to(weight)
            with torch.no_grad():
                weight += change
            solution[f"text_model.encoder.layers.{number}.mlp.fc2.weight"] = weight.detach().clone()
        return solution


def regression(keys: Tensor, errors: Tensor, ridge: float) -> Tensor:
    """The matrix M (width, inner) that minimizes |M k - d|^2 + ridge |M|^2, in float64.

    `keys` is the weighted sum of k k^T, (inner, inner); `errors` that of d k^T, (width, inner);
    `ridge` is relative to the mean of the diagonal of `keys`.
    """
    strength = ridge * keys.diagonal().mean()
    solution: Tensor = torch.linalg.solve(keys + strength * torch.eye(len(keys)).to(keys), errors.T)
    return solution.T


def _evenly_spaced(mask: Tensor, most: int) -> Tensor:
    """At most `most` of the rows that have a target."""
    rows = torch.nonzero(mask.sum(1)).flatten()
    count = min(most, len(rows))
    return rows[torch.arange(count) * len(rows) // count]


def _moments(
    original: CLIPTextModel,
    edited: CLIPTextModel,
    layer: int,
    pairs: TokenizedPairs,
    mask: Tensor,
    rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """The means of k k^T and d k^T over all positions of the rows that have a target.

    k is the input of the layer's output matrix, d the error of the residual stream after the layer.
    """
    keys = errors = torch.zeros((), dtype=torch.float64)
    for some in torch.split(rows, BATCH):
        key, stream = _layer_activations(edited, layer, pairs.ids[some])
        _, target = _layer_activations(original, layer, pairs.concept_removed_ids[some])
        source = pairs.source[some][:, :, None].expand_as(target)
        target = target.gather(1, source.to(target.device))
        targeted = mask[some].bool().to(stream.device)
        key, error = key[targeted], (target - stream)[targeted]
        keys = keys + _in_float64(key.T @ key)
        errors = errors + _in_float64(error.T @ key)
    count = float(mask[rows].sum())
    return keys / count, errors / count


def _in_float64(moments: Tensor) -> Tensor:
    """On the GPU if it has float64, which Apple's has not."""
    return (moments if moments.is_cuda else moments.cpu()).double()


def _layer_activations(tower: CLIPTextModel, number: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Input of the layer's output matrix, (n, tokens, inner), and the layer's output."""
    layers = tower.encoder.layers
    layer = layers[number]
    tower.encoder.layers = layers[: number + 1]  # those above change nothing that is read
    activations: dict[str, Tensor] = {}
    hooks = [
        layer.mlp.fc2.register_forward_pre_hook(
            lambda _, inputs: activations.update(key=inputs[0])
        ),
        layer.register_forward_hook(lambda _, __, out: activations.update(out=out)),
    ]
    try:
        with torch.no_grad():
            tower(input_ids=ids.to(layer.mlp.fc2.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
        tower.encoder.layers = layers
    return activations["key"], activations["out"]
