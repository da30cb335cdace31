"""What a method sees: batches, the student, the original; and what all methods are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.clip import Clip, Encoded

if TYPE_CHECKING:
    from ..unlearning.captions import Rows


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
    """One step's forget and retain pairs.

    `done` is the share of the steps that lie behind (0-1); `generator` is the step's own, on the
    CPU, so that a run that was killed draws the same again.
    """

    forget: Side
    retain: Side
    reduced: Reduced
    done: float
    generator: torch.Generator


@dataclass(frozen=True)
class World:
    """What a method may look at before the first step: the original, and the training captions."""

    clip: Clip
    concepts: tuple[str, ...]
    forget: Rows
    retain: Rows
    seed: int


class Student(Protocol):
    """The model being unlearned."""

    @property
    def scale(self) -> float:
        """CLIP's temperature: similarities are multiplied by it."""

    def text(self, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
        """Features (n, projection), of unit norm or as they are, and token states."""

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """Features (n, projection) of pixels (n, 3, size, size), of unit norm or as they are."""

    def __call__(self, side: Side) -> Encoded:
        """Encodes one side, with gradient for the towers that train."""


def made() -> Any:
    """A field that `prepare` fills with a tensor; no setting."""
    return dataclasses.field(
        default_factory=lambda: torch.empty(0), repr=False, compare=False, metadata={"made": True}
    )


def at_least(least: int, default: int) -> Any:
    """A whole number from `least` on."""
    return dataclasses.field(default=default, metadata={"least": least})


def above(bound: float, default: float) -> Any:
    """A number above `bound`."""
    return dataclasses.field(default=default, metadata={"above": bound})


@dataclass(frozen=True, kw_only=True)
class Method:
    """A frozen dataclass of hyperparameters with one idea. Its first docstring line is the citation.

    The class variables are what it works with unless the user asks for something else.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    """What its loss looks at, so that the rest is not computed: "images" (their features, of the retain
    pairs; those of the forget pairs are always there), "features" (the original's, of the captions),
    "states" (of tokens; the original's of the retain and reduced captions), "tower" (it has images of
    its own to encode)."""
    rate: ClassVar[float] = 1e-4
    """Learning rate; those here were chosen on the miniature world (README: How the rates were chosen)."""
    steps: ClassVar[int] = 120
    """Most steps."""
    forget_threshold: ClassVar[float | None] = None
    """Validation measure at which it may end; None: it runs to its last step, as its paper does."""
    retain_floor: ClassVar[float | None] = None
    """Validation measure below which a step is rolled back; None: never."""
    trained: ClassVar[str] = "all layers"
    """What `trains` lets through, in words."""

    def prepare(self, world: World) -> Self:
        """This method with what it makes of the original before the first step; the same each time."""
        del world
        return self

    def trains(self, name: str) -> bool:
        """Whether the parameter of that name in `CLIPModel` moves."""
        del name
        return True

    def solve(self, world: World) -> Mapping[str, Tensor] | None:
        """New weights in closed form, by name; None where the loss is stepped down instead.

        Not finite weights are never saved: `artifact.save` looks.
        """
        del world
        return None

    def left(self, student: Student) -> float | None:
        """Its own measure of what is left of the concept; None where it has none.

        Where there is one, it steers a schedule: a look without gain is rolled back and begins the next
        stage, and the last one, or 0, ends the run.
        """
        del student
        return None

    def at(self, stage: int) -> Self | None:
        """The method in that stage of its schedule, from 0; None after the last."""
        return None if stage else self

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; the loop adds them up."""
        raise NotImplementedError

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The hyperparameters and their defaults, by name."""
        return {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            for f in dataclasses.fields(cls)
            if "made" not in f.metadata
        }


def contrast(student: Student, forget: Encoded, retain: Encoded) -> tuple[Tensor, Tensor]:
    """CLIP's contrastive loss of each pair, (n,), of the forget and of the retain pairs.

    Half image to text, half text to image (Radford et al., 2021, arXiv 2103.00020); the candidates
    are the captions and images of both sides.
    """
    image = torch.cat([forget.image, retain.image])
    text = torch.cat([forget.text, retain.text])
    similarity = student.scale * image @ text.T
    target = torch.arange(len(similarity), device=similarity.device)
    each = [F.cross_entropy(rows, target, reduction="none") for rows in (similarity, similarity.T)]
    both = (each[0] + each[1]) / 2
    return both[: len(forget.text)], both[len(forget.text) :]


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """KL(softmax(before) || softmax(now)) over the last dimension, mean over rows."""
    return F.kl_div(
        now.log_softmax(-1), before.log_softmax(-1), reduction="batchmean", log_target=True
    )


def drift(student: Student, original: Encoded, now: Encoded) -> Tensor:
    """Divergence of the batch's similarities from the original's, image to text and back."""
    before = student.scale * original.image @ original.text.T
    after = student.scale * now.image @ now.text.T
    return divergence(before, after) + divergence(before.T, after.T)
