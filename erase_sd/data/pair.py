"""A caption pair, the one object that travels from the dataset's reader to the table of rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ConceptSet = Literal["forget", "retain"]
CONCEPT_SETS: tuple[ConceptSet, ...] = get_args(ConceptSet)

Split = Literal["train", "validation", "held-out"]
SPLITS: tuple[Split, ...] = get_args(Split)

PromptKind = Literal["plain", "synonym", "name-free", "look-alike", "other-sense"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)


@dataclass(frozen=True, kw_only=True)
class CaptionPair:
    """A caption and its image, with everything that later stages ask about it.

    In the dataset the image is a photograph of the forget or the retain set; for a held-out caption
    that serves as a prompt, it is yet to be generated.
    """

    caption: str
    image: str | None
    """File name of the photograph; None for a prompt."""
    mentions: tuple[str, ...]
    """Names of the erased concepts that the caption mentions, by name or given synonym."""
    set: ConceptSet
    """`forget` if the image shows an erased concept: any of its captions mentions one, or the prompt's
    kind implies it; else `retain`."""
    split: Split
    kind: PromptKind = "plain"
    """How a prompt refers to the concept; `plain` for captions of a dataset."""
    label: str | None = None
    """Class of the image, if the dataset has classes instead of captions."""
    concept: str | None = None
    """The concept that a prompt of another kind than `plain` belongs to."""
