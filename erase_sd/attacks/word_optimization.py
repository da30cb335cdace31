"""Prompts of words, optimized through their embeddings: what unlearndiffatk and p4d have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .base import descend
from .target import AttackedCaption, Embeds, Target
from .tokens import TokenRows, encode_rows

Words = tuple[Tensor, Mapping[str, Tensor]]
"""Numbers of the words that a variable stands for, (n, length), and their embeddings by encoder, (n,
length, width), which pass their gradient to the variable."""


def optimized_words(
    target: Target,
    captions: Sequence[AttackedCaption],
    rows: TokenRows,
    variable: Tensor,
    words: Callable[[Tensor], Words],
    loss: Callable[[Tensor, Embeds], Tensor],
    steps: int,
    learning_rate: float,
) -> Tensor:
    """The words, (n, length) on the CPU, after `steps` of Adam on the variable behind them.

    They stand in the stretch of `rows`; `loss` judges the rows' encodings with the latents of the
    captions' photographs.
    """
    latents = target.denoiser.latents([caption.image for caption in captions])
    optimizer = torch.optim.Adam([variable.requires_grad_()], lr=learning_rate)
    for _ in range(steps):
        embeds = encode_rows(target, target.erased, rows, words(variable)[1])
        descend(optimizer, loss(latents, embeds))
    return words(variable)[0].cpu()
