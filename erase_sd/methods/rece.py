"""Reliable concept erasing (Gong et al., ECCV 2024, arXiv 2407.12383): closed form, in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import cross_attention
from .base import Task, minimum
from .concept_prompts import denoiser_of
from .uce import UCE


@dataclass(frozen=True, kw_only=True)
class RECE(UCE):
    """Gong et al. (ECCV 2024, arXiv 2407.12383): UCE against embeddings that bring the concept back.

    After the closed-form edit, the embeddings that the edited matrices read most like the original
    reads the concept are derived in closed form (Eq. 8) and erased too, round by round. Differs: as
    for `uce`, captions take part; an edit erases all embeddings derived so far rather than the last,
    so that no round undoes an earlier one.
    """

    rounds: int = minimum(0, 3)
    """Rounds after the first edit (5 for objects in the paper); 0 is `uce`."""
    derived_ridge: float = 0.1
    """Weight of the derived embeddings' norm, as a share of the edited matrices' mean square (0.1 or
    0.001, by the concept and not relative to anything, in the authors' code)."""
    derived_weight: float = 0.1
    """Weight of each round's derived embeddings, relative to the concept (ours; 1 in the paper)."""

    def solve(self, task: Task) -> Mapping[str, Tensor]:
        """The key and value matrices, (inner, width)."""
        wanted, (read, instead) = self.problem(task)
        matrices = cross_attention.keys_and_values(denoiser_of(task).unet)
        gram = torch.stack([matrix.T @ matrix for matrix in matrices.values()]).sum(0)
        transform = cross_attention.edit(wanted, self.ridge)
        for _ in range(self.rounds):
            revived = revival(gram, transform, self.derived_ridge)
            derived = read.cpu().double() @ revived.T
            wanted += cross_attention.moments(derived, instead).scaled(self.derived_weight)
            transform = cross_attention.edit(wanted, self.ridge, transform)
        return cross_attention.edited(matrices, transform)


def revival(gram: Tensor, transform: Tensor, ridge: float) -> Tensor:
    """The matrix that turns c into the embedding with which the edited matrices read it, (width, width).

    It gives the c' that minimizes the sum over all matrices W of |W T c' - W c|^2 + s |c'|^2; `gram` is
    the sum of W^T W, `transform` T, and s is `ridge` times the mean of the diagonal of T^T W^T W T.
    """
    own = transform.T @ gram @ transform
    strength = ridge * own.diagonal().mean() * torch.eye(len(own)).to(own)
    solution: Tensor = torch.linalg.solve(own + strength, transform.T @ gram)
    return solution
