"""Unified concept editing (Gandikota et al., WACV 2024, arXiv 2308.14761): cross-attention, closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from . import cross_attention
from .base import ClosedFormMethod, Need, Task, Unlearned, minimum
from .concept_prompts import denoiser_of


@dataclass(frozen=True, kw_only=True)
class UCE(ClosedFormMethod):
    """Gandikota et al. (WACV 2024, arXiv 2308.14761): what the U-Net reads of the concept, in Eq. 7.

    Every key and value matrix of the cross-attention is set to the least-squares solution that reads
    the concept as the original reads something else, and everything to be retained as before.
    Differs: the paper edits the concept's name and retains other names; here captions of the forget
    and the retain set are edited and retained too, which 0 switches off. Sums are means, so that
    neither set counts for its size.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"denoiser"})
    unlearns: ClassVar[Unlearned] = "unet"
    trained_parameters: ClassVar[str] = "keys and values of the U-Net's cross-attention"
    prompts: tuple[str, ...] = ("{}", "a photo of {}", "a picture of {}")
    """Prompts to edit, separated by |, with {} for the concept's name (the name alone in the paper)."""
    toward: str = ""
    """What the name is read as: a word, or nothing (nothing in the paper, for objects)."""
    forget_captions: int = minimum(0, 500)
    """Maximum number of forget captions that are to be read as the concept-removed ones (ours; 0 in the
    paper)."""
    retain_captions: int = minimum(1, 500)
    """Maximum number of retain captions that are to be read as before (ours; names of other concepts in
    the paper)."""
    retain_weight: float = 1.0
    """Weight of the retain captions, relative to the concept (1 in the authors' code)."""
    ridge: float = 1e-4
    """Weight of the matrices' change, as a share of the texts' mean square (ours; 0.5, not relative to
    anything, in the authors' code)."""

    def trains(self, name: str) -> bool:
        """Keys and values of the cross-attention."""
        return cross_attention.is_key_or_value(name)

    def solve(self, task: Task) -> Mapping[str, Tensor]:
        """The key and value matrices, (inner, width)."""
        wanted, _ = self.problem(task)
        matrices = cross_attention.keys_and_values(denoiser_of(task).unet)
        return cross_attention.edited(matrices, cross_attention.edit(wanted, self.ridge))

    def problem(self, task: Task) -> tuple[cross_attention.TextMoments, tuple[Tensor, Tensor]]:
        """The moments to solve for, and the states of the concept with those to read instead, (n, width)."""
        denoiser = denoiser_of(task)
        read, instead = cross_attention.concept_pairs(
            task, denoiser, self.prompts, self.toward, self.forget_captions
        )
        kept = cross_attention.retained_states(denoiser, task.retain, self.retain_captions)
        wanted = cross_attention.moments(read, instead)
        wanted += cross_attention.moments(kept, kept).scaled(self.retain_weight)
        return wanted, (read, instead)
