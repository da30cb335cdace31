"""Prompts that name a concept, what the model is to read or predict instead, and images of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, ModelError
from ..models.denoiser import Denoiser
from ..models.pipeline import encoders_of
from .base import Task, TokenizedPairs
from .losses import fill


@dataclass(frozen=True)
class ConceptPrompts:
    """Prompts as token ids, (n, tokens) each."""

    asked: Tensor
    """With the concept."""
    instead: Tensor
    """The same prompts with something else in its place."""


def concept_prompts(
    task: Task, templates: Sequence[str], toward: str, captions: int
) -> ConceptPrompts:
    """Templates with each concept's name, or `toward`, for their `{}`, and up to `captions` forget
    captions with their concept-removed ones; as often one as the other.

    If `toward` is empty, the empty prompt stands for every template.
    """
    names = [fill(template, name) for name in task.concepts for template in templates]
    others = [fill(template, toward) if toward else "" for template in templates]
    asked = task.clip.tokens(names)
    instead = task.clip.tokens(others * len(task.concepts))
    rows = mentioning(task.forget, captions)
    if not len(rows):
        return ConceptPrompts(asked, instead)
    repeats = max(1, len(rows) // len(asked))
    return ConceptPrompts(
        torch.cat([asked.repeat(repeats, 1), task.forget.ids[rows]]),
        torch.cat([instead.repeat(repeats, 1), task.forget.concept_removed_ids[rows]]),
    )


def mentioning(pairs: TokenizedPairs, most: int) -> Tensor:
    """At most `most` rows of captions that mention a concept, evenly spread."""
    return spread(torch.nonzero(pairs.mask.any(1)).flatten(), most)


def spread(rows: Tensor, most: int) -> Tensor:
    """At most `most` of the rows, evenly spread."""
    count = min(most, len(rows))
    return rows[torch.arange(count) * len(rows) // max(1, count)]


def concept_images(task: Task, most: int) -> list[Path]:
    """Up to `most` images whose captions mention a concept; DataError if there is none."""
    rows = mentioning(task.forget, len(task.forget)).tolist()
    paths = list(dict.fromkeys(task.forget.paths[row] for row in rows))[:most]
    if not paths:
        raise DataError(
            "the method learns from images of the concept, and there are none", field="data"
        )
    return paths


def denoiser_of(task: Task, *, one_encoder: bool = False) -> Denoiser:
    """The original pipeline; with `one_encoder`, ModelError if its U-Net reads two.

    Raises DataError for a CLIP without a pipeline.
    """
    if task.open_denoiser is None:
        raise DataError(
            "the method needs a Stable Diffusion, and a CLIP alone is unlearned", field="model"
        )
    denoiser = task.open_denoiser()
    if one_encoder and len(encoders_of(denoiser.pipe)) > 1:
        raise ModelError(
            "its U-Net reads two text encoders; this method needs one",
            field="model", value=denoiser.pipe.config._name_or_path,
        )  # fmt: skip
    return denoiser
