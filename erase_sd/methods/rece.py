"""Reliable concept erasing (Gong et al., ECCV 2024, arXiv 2407.12383): closed form, in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import cross_attention
from .base import ClosedFormMethod, Need, Task, Unlearned, minimum
from .concept_prompts import denoiser_of


@dataclass(frozen=True, kw_only=True)
class RECE(ClosedFormMethod):
    """Gong et al. (ECCV 2024, arXiv 2407.12383): UCE against embeddings that bring the concept back.

    After the closed-form edit, the embeddings that the edited matrices read most like the original
    reads the concept are derived in closed form (Eq. 8) and erased too, round by round. Differs: as
    for `uce`, captions take part; an edit erases all embeddings derived so far rather than the last,
    so that no round undoes an earlier one.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    unlearns: ClassVar[Unlearned] = "unet"
    trained_parameters: ClassVar[str] = "keys and values of the U-Net's cross-attention"
    prompts: tuple[str, ...] = ("{}", "a photo of {}", "a picture of {}")
    """Prompts to edit, separated by |, with {} for the concept's name (the name alone in the paper)."""
    toward: str = ""
    """What the name is read as: a word, or nothing (nothing in the paper, for objects)."""
    forget_captions: int = minimum(0, 500)
    """Most forget captions to be read as the concept-removed ones (ours; 0 in the paper)."""
    retain_captions: int = minimum(1, 500)
    """Most captions to be read as before (ours; names of other concepts in the paper)."""
    retain_weight: float = 1.0
    """Weight of the retain captions, relative to the concept (1 in UCE's code)."""
    ridge: float = 1e-4
    """Weight of each edit's change, as a share of the texts' mean square (ours; 0.5, not relative to
    anything, in UCE's code)."""
    rounds: int = minimum(0, 3)
    """Rounds after the first edit (5 for objects in the paper); 0 is `uce`."""
    derived_ridge: float = 0.1
    """Weight of the derived embeddings' norm, as a share of the edited matrices' mean square (0.1, not
    relative to anything, in the authors' code)."""
    derived_weight: float = 0.1
    """Weight of each round's derived embeddings, relative to the concept (ours; 1 in the paper)."""

    def trains(self, name: str) -> bool:
        """Keys and values of the cross-attention."""
        return cross_attention.reads_text(name) and name.endswith(("to_k.weight", "to_v.weight"))

    def solve(self, task: Task) -> Mapping[str, Tensor]:
        """The key and value matrices, (inner, width)."""
        denoiser = denoiser_of(task)
        read, instead = cross_attention.concept_pairs(
            task, denoiser, self.prompts, self.toward, self.forget_captions
        )
        kept = cross_attention.retained_states(denoiser, task.retain, self.retain_captions)
        wanted = cross_attention.moments(read, instead)
        wanted += cross_attention.moments(kept, kept).scaled(self.retain_weight)
        matrices = cross_attention.keys_and_values(denoiser.unet)
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
