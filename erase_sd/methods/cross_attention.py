"""The U-Net's cross-attention, where it reads text: its parameters, what it reads, closed-form edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from .base import Task, TokenizedPairs
from .concept_prompts import mentioning, spread
from .losses import fill


def reads_text(name: str) -> bool:
    """Whether the U-Net's parameter of that name belongs to a cross-attention."""
    return ".attn2." in name


def is_key_or_value(name: str) -> bool:
    """Whether the parameter of that name turns text into keys or values."""
    return name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))


def keys_and_values(unet: Any) -> dict[str, Tensor]:
    """The matrices that turn text into keys and values, (inner, width), in float64, by name."""
    return {
        name: parameter.detach().cpu().double()
        for name, parameter in unet.named_parameters()
        if is_key_or_value(name)
    }


@dataclass(frozen=True)
class TextMoments:
    """Second moments of what the U-Net reads of texts, in float64, (width, width)."""

    own: Tensor
    """Mean of c c^T."""
    toward: Tensor
    """Mean of c* c^T, where c* is what c is to be read as."""

    def scaled(self, weight: float) -> TextMoments:
        """Both times a weight."""
        return TextMoments(weight * self.own, weight * self.toward)

    def __add__(self, other: TextMoments) -> TextMoments:
        return TextMoments(self.own + other.own, self.toward + other.toward)


def moments(read: Tensor, toward: Tensor) -> TextMoments:
    """The moments of vectors (n, width) and of those that they are to be read as."""
    read, toward = read.cpu().double(), toward.cpu().double()
    return TextMoments(read.T @ read / len(read), toward.T @ read / len(read))


def edit(wanted: TextMoments, ridge: float, before: Tensor | None = None) -> Tensor:
    """The matrix T with which every W T c comes closest to W c*, (width, width).

    T minimizes the mean |W T c - W c*|^2 + s |W T - W T0|^2 for every W at once; T0 is `before`, by
    default the identity, and s is `ridge` times the mean of the diagonal of c c^T.
    """
    identity = torch.eye(len(wanted.own)).to(wanted.own)
    strength = ridge * wanted.own.diagonal().mean()
    target = wanted.toward + strength * (identity if before is None else before)
    solution: Tensor = torch.linalg.solve(wanted.own + strength * identity, target.T).T
    return solution


def edited(matrices: Mapping[str, Tensor], transform: Tensor) -> dict[str, Tensor]:
    """The matrices that read `transform` c in the place of c, in float32."""
    return {name: (matrix @ transform).float() for name, matrix in matrices.items()}


def concept_pairs(
    task: Task, denoiser: Denoiser, prompts: Sequence[str], toward: str, captions: int
) -> tuple[Tensor, Tensor]:
    """What the U-Net reads of the concepts, and what it is to read instead, (n, width) each.

    Of prompts with the concept's name for their `{}`: the states from the name's last token on, and
    those of the same prompt with `toward`, from that word's last token on. Of up to `captions` forget
    captions: the states from the first token on that differs, and those of the concept-removed caption.
    """
    read, instead = [], []
    for name in task.concepts:
        for prompt in prompts:
            ids = task.clip.tokens([fill(prompt, name), " ".join(fill(prompt, toward).split())])
            states = denoiser.encode(ids)["prompt_embeds"]
            before = prompt.partition("{}")[0]
            starts = [_last_token(task, before, word) for word in (name, toward)]
            length = ids.shape[1] - max(starts)
            read.append(states[0, starts[0] : starts[0] + length])
            instead.append(states[1, starts[1] : starts[1] + length])
    rows = mentioning(task.forget, captions)
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        states, target = caption_states(denoiser, task.forget, some)
        ids, removed = task.forget.ids[some], task.forget.concept_removed_ids[some]
        after = ((ids != removed).cumsum(1) > 0).to(states.device)
        read.append(states[after])
        instead.append(target[after])
    return torch.cat(read), torch.cat(instead)


def _last_token(task: Task, before: str, word: str) -> int:
    """Position of the last token of `before` and a word; 0, the start, if both are empty."""
    return len(task.clip.tokenizer(before + word)["input_ids"]) - 2


def caption_states(
    denoiser: Denoiser, pairs: TokenizedPairs, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """What the U-Net reads of captions, and of the concept-removed ones at the positions that
    correspond, (n, tokens, width) each."""
    states = denoiser.encode(pairs.ids[rows])["prompt_embeds"]
    removed = denoiser.encode(pairs.concept_removed_ids[rows])["prompt_embeds"]
    return states, pairs.aligned(rows, removed)


def retained_states(denoiser: Denoiser, pairs: TokenizedPairs, most: int) -> Tensor:
    """What the U-Net reads of up to `most` retain captions, (n, width)."""
    rows = spread(torch.arange(len(pairs)), most)
    return denoiser.encode(pairs.ids[rows])["prompt_embeds"].flatten(0, 1)
