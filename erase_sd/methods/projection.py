"""Closed-form projection (this project), after MEMIT (arXiv 2210.07229) and UCE (arXiv 2308.14761)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from .base import Method, World, at_least

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from ..unlearning.captions import Rows


@dataclass(frozen=True, kw_only=True)
class Projection(Method):
    """This project, after MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229): ridge regression.

    Layer after layer, the output matrix of the text tower's MLP gets the least-squares solution that
    gives the forget captions the original's residual stream of the caption without the concept, and
    the retain captions their own. Differs: MEMIT spreads one edit of one subject over the layers and
    knows the rest by a covariance; UCE (Gandikota et al., WACV 2024, arXiv 2308.14761) solves the
    same in the U-Net's cross-attention. Here each layer has its own target, at every position.
    """

    trained: ClassVar[str] = "the MLP output matrices of the text tower, in one solution each"
    first_layer: int = at_least(0, 0)
    """The first that is edited, from 0; the last is the last that the U-Net reads (ours: all)."""
    retain_weight: float = 0.3
    """Of the retain captions' mean squared change beside the forget captions' 1 (ours)."""
    ridge: float = 1e-4
    """Of the matrix's own change, as a share of the inputs' mean square (ours)."""
    captions: int = at_least(1, 500)
    """Most captions of each side that are looked at (ours, for two CPU cores)."""

    def solve(self, world: World) -> Mapping[str, Tensor]:
        """The edited layers' `mlp.fc2.weight`, (width, inner)."""
        original: CLIPTextModel = world.clip.model.text_model
        edited = copy.deepcopy(original)
        read = max((tap.layer for tap in world.clip.taps), default=len(edited.encoder.layers))
        if self.first_layer >= read:
            raise SettingError(
                f"--weight first_layer: needs at most {read - 1} here, got {self.first_layer}"
            )
        solved = {}
        for number in range(self.first_layer, read):
            weight = edited.encoder.layers[number].mlp.fc2.weight
            keys = wanted = torch.zeros(())
            sides = (
                (world.forget, world.forget.mask, 1.0),
                (world.retain, torch.ones_like(world.retain.mask), self.retain_weight),
            )
            for rows, mask, share in sides:
                k, w = _moments(original, edited, number, *_some(rows, mask, self.captions))
                keys, wanted = keys + share * k, wanted + share * w
            change = regression(keys, wanted, self.ridge).to(weight)
            with torch.no_grad():
                weight += change
            solved[f"text_model.encoder.layers.{number}.mlp.fc2.weight"] = weight.detach().clone()
        return solved


def regression(keys: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """The matrix M (width, inner) with the least |M k - d|^2 + ridge |M|^2, in float64.

    `keys` is the weighted sum of k k^T, (inner, inner); `wanted` that of d k^T, (width, inner);
    `ridge` is a share of the mean of the diagonal of `keys`.
    """
    strength = ridge * keys.diagonal().mean()
    solved: Tensor = torch.linalg.solve(keys + strength * torch.eye(len(keys)).to(keys), wanted.T)
    return solved.T


def _some(rows: Rows, mask: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At most that many rows that have a counterpart, evenly spread: ids, the counterpart's ids,
    source and mask, each (n, tokens)."""
    able = torch.nonzero(mask.sum(1)).flatten()
    count = min(most, len(able))
    picked = able[torch.arange(count) * len(able) // count]
    return rows.ids[picked], rows.reduced_ids[picked], rows.source[picked], mask[picked]


def _moments(
    original: CLIPTextModel,
    edited: CLIPTextModel,
    number: int,
    ids: Tensor,
    wanted_ids: Tensor,
    source: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """The means of k k^T and d k^T over all positions: k enters the layer's output matrix, d is what
    the residual stream behind it lacks."""
    keys = wanted = torch.zeros((), dtype=torch.float64)
    for part in torch.split(torch.arange(len(ids)), 128):
        key, now = _inside(edited, number, ids[part])
        _, then = _inside(original, number, wanted_ids[part])
        then = then.gather(1, source[part][:, :, None].expand_as(then).to(then.device))
        there = mask[part].bool().to(now.device)
        key, lack = key[there], (then - now)[there]
        keys = keys + (key.T @ key).cpu().double()
        wanted = wanted + (lack.T @ key).cpu().double()
    return keys / mask.sum(), wanted / mask.sum()


def _inside(tower: CLIPTextModel, number: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What enters that layer's output matrix, (n, tokens, inner), and what leaves the layer."""
    layer = tower.encoder.layers[number]
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.mlp.fc2.register_forward_pre_hook(lambda _, given: seen.update(key=given[0])),
        layer.register_forward_hook(lambda _, __, out: seen.update(out=out)),
    ]
    try:
        with torch.no_grad():
            tower(input_ids=ids.to(layer.mlp.fc2.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen["key"], seen["out"]
