"""What a method sees: batches, the student, and the signature all methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ..encoders import Encoded


@dataclass(frozen=True)
class Side:
    """n caption pairs of one side, with what the ORIGINAL model makes of them.

    `ids` (n, tokens); `original.text`, `original.image` unit norm, (n, projection);
    `original.states` (n, tokens, width), of the retain side only; each is empty where the method does
    not read it; `pixels` (n, 3, size, size) where the image tower trains, else None.
    """

    ids: Tensor
    original: Encoded
    pixels: Tensor | None = None


@dataclass(frozen=True)
class Reduced:
    """The forget captions with the concept taken out, through the ORIGINAL model.

    `states` (n, tokens, width) holds at each position what it should be instead; `mask`
    (n, tokens) is 0 at positions that have no counterpart.
    """

    states: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """One step's forget and retain pairs."""

    forget: Side
    retain: Side
    reduced: Reduced


class Student(Protocol):
    """The model being unlearned."""

    @property
    def scale(self) -> float:
        """CLIP's temperature: similarities are multiplied by it."""

    def __call__(self, side: Side) -> Encoded:
        """Encodes one side, with gradient for the towers that train."""


class Method(Protocol):
    """A frozen dataclass of hyperparameters with one idea.

    `reads` says what of the original its loss looks at, so that the rest is not computed:
    "features" (pooled, of the retain pairs), "states" (of tokens, retain and reduced). `rate` is
    the learning rate it works with unless another is asked for.
    """

    reads: ClassVar[frozenset[str]]
    rate: ClassVar[float]

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; the loop adds them up."""
