"""Closed-form projection (this project), after MEMIT (arXiv 2210.07229) and UCE (arXiv 2308.14761)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from .base import ClosedFormMethod, Need, Task, minimum
from .caption_streams import caption_streams, mean_moments

if TYPE_CHECKING:
    from transformers import CLIPTextModel


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
        retained = torch.ones_like(task.retain.mask)
        forget = caption_streams(
            original, self.first_layer, task.forget, task.forget.mask, self.captions
        )
        retain = caption_streams(original, self.first_layer, task.retain, retained, self.captions)
        solution = {}
        for number in range(self.first_layer, layers):
            layer = edited.encoder.layers[number]
            keys, errors = mean_moments(forget, layer, original.encoder.layers[number])
            more_keys, more_errors = mean_moments(retain, layer, original.encoder.layers[number])
            keys = keys + self.retain_weight * more_keys
            errors = errors + self.retain_weight * more_errors
            change = regression(keys, errors, self.ridge).to(layer.mlp.fc2.weight)
            with torch.no_grad():
                layer.mlp.fc2.weight += change
            for stream in forget + retain:
                stream.edit(layer, change)
            name = f"text_model.encoder.layers.{number}.mlp.fc2.weight"
            solution[name] = layer.mlp.fc2.weight.detach().clone()
        return solution


def regression(keys: Tensor, errors: Tensor, ridge: float) -> Tensor:
    """The matrix M (width, inner) that minimizes |M k - d|^2 + ridge |M|^2, in float64.

    `keys` is the weighted sum of k k^T, (inner, inner); `errors` that of d k^T, (width, inner);
    `ridge` is relative to the mean of the diagonal of `keys`.
    """
    strength = ridge * keys.diagonal().mean()
    solution: Tensor = torch.linalg.solve(keys + strength * torch.eye(len(keys)).to(keys), errors.T)
    return solution.T
