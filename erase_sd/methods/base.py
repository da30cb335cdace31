"""The interface of an unlearning method, and what it works with: task, student and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from ..data.images import ImageSource
from ..data.pair import CaptionPair
from ..models.clip import Clip, FreeEmbeddings
from ..models.denoiser import Denoiser
from .encodings import Encodings as Encodings

Need = Literal["images", "features", "hidden_states", "image_tower", "clip_layers", "denoiser"]
Unlearned = Literal["text_encoders", "unet"]
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class EncodedPairs:
    """n caption pairs of the forget or the retain set, and the original model's encodings of them."""

    ids: Tensor
    """Token ids, (n, tokens)."""
    original: Encodings
    pixels: Tensor | None = None
    """Processed images, (n, 3, size, size), if the image tower trains."""
    prompts: Tensor | None = None
    """Token ids of a prompt of every class, (classes, tokens); of retain pairs of labelled data only."""


@dataclass(frozen=True)
class ConceptRemoved:
    """Targets for the forget captions: the original model's encoding of them without the concept."""

    hidden_states: Tensor
    """The target at each position, (n, tokens, width)."""
    mask: Tensor
    """1 at positions that have a target, else 0, (n, tokens)."""


@dataclass(frozen=True)
class Batch:
    """Forget and retain pairs of one step."""

    forget: EncodedPairs
    retain: EncodedPairs
    concept_removed: ConceptRemoved | None
    """None unless the method's `needs` ask for hidden states."""
    done: float
    """Share of the steps already taken (0-1)."""
    generator: torch.Generator
    """Random numbers on the CPU, seeded by the step, so that a resumed run samples the same."""
    memory: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Tensors that the method carries from step to step; the checkpoint holds them."""


@dataclass(frozen=True)
class TokenizedPairs:
    """Caption pairs of one concept set and split, with their tokens."""

    pairs: list[CaptionPair]
    ids: Tensor
    """Token ids of the captions, (n, tokens)."""
    image: Tensor | None
    """Unit-norm features of the images by the original model, (n, projection), if needed."""
    paths: list[ImageSource]
    """Where the images lie."""
    concept_removed_ids: Tensor
    """Token ids of the captions without the concept, (n, tokens)."""
    source: Tensor
    """Position in the concept-removed caption that each position corresponds to, (n, tokens)."""
    mask: Tensor
    """1 for captions that have a concept-removed counterpart, else 0, (n, tokens)."""
    mention_end: Tensor
    """Position of the last token of the last mention, 0 if there is none, (n,)."""
    label: Tensor | None = None
    """Number of each image's class in labelled data, (n,)."""

    def __len__(self) -> int:
        return len(self.pairs)

    def aligned(self, rows: Tensor, removed: Tensor) -> Tensor:
        """Hidden states of the concept-removed captions of some rows, (rows, tokens, width), at the
        positions that correspond to those of the captions."""
        source = self.source[rows].to(removed.device)  # small until it is expanded
        return removed.gather(1, source[:, :, None].expand_as(removed))


@dataclass(frozen=True)
class Task:
    """What a method can use before the first step."""

    clip: Clip
    """The original model."""
    concepts: tuple[str, ...]
    forget: TokenizedPairs
    """Training pairs that show a concept."""
    retain: TokenizedPairs
    """Training pairs that show none."""
    seed: int
    prompts: Tensor | None = None
    """For labelled data: token ids of the prompts of all classes, (templates, classes, tokens)."""
    open_denoiser: Callable[[], Denoiser] | None = None
    """Opens the original pipeline, if there is one; raises ModelError if it cannot be used."""


class Student(Protocol):
    """The model being unlearned."""

    @property
    def scale(self) -> float:
        """CLIP's temperature, which multiplies similarities."""

    @property
    def joins(self) -> bool:
        """Whether `both` takes less time than two calls."""

    def both(self, batch: Batch) -> tuple[Encodings, Encodings]:
        """The encodings of the captions of the forget and of the retain pairs, by one pass."""

    def text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (n, projection), normalized if `unit`, and hidden states (n, tokens, width)."""

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """Features (n, projection), normalized if `unit`, of pixels (n, 3, size, size)."""

    @property
    def denoiser(self) -> Denoiser:
        """The pipeline with the U-Net in training; LookupError if text encoders are unlearned."""

    def __call__(self, pairs: EncodedPairs) -> Encodings:
        """Encodes caption pairs, with gradients for the towers that train."""


def fitted(before: Any = None) -> Any:
    """A field that `prepare` fills, with its value until then; not a hyperparameter."""
    return dataclasses.field(default=before, repr=False, compare=False, metadata={"fitted": True})


def minimum(bound: int, default: int) -> Any:
    """A whole number of at least `bound`."""
    return dataclasses.field(default=default, metadata={"minimum": bound})


def greater_than(bound: float, default: float) -> Any:
    """A number above `bound`."""
    return dataclasses.field(default=default, metadata={"greater_than": bound})


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """A frozen dataclass of hyperparameters. The first line of its docstring is the citation."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What to compute beside the captions' tokens and the features of the forget images: `images`
    (features of the retain images), `features` (the original's caption features), `hidden_states` (the
    student's, and the original's of the retain and the concept-removed captions), `image_tower` (keeps
    it on the device, for images of the method's own), `clip_layers` (hidden states or layers of CLIP's
    text tower beside those of the batch: nothing more is computed), `denoiser` (a Stable Diffusion, whose
    U-Net the method uses)."""
    unlearns: ClassVar[Unlearned] = "text_encoders"
    """What changes: each text encoder of the pipeline in turn, or its U-Net."""
    erases_mentions: ClassVar[bool] = False
    """Whether to erase also what else the captions call the concept, by default; if not, only the words
    that were given are erased."""
    trained_parameters: ClassVar[str] = "all layers"
    """The parameters that change, in words."""

    def trains(self, name: str) -> bool:
        """Whether the parameter called `name` in `CLIPModel`, or in the U-Net, changes."""
        del name
        return True

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Default of every hyperparameter."""
        return {f.name: f.default for f in dataclasses.fields(cls) if "fitted" not in f.metadata}


@dataclass(frozen=True, kw_only=True)
class Method(Hyperparameters):
    """Unlearning by gradient descent on a loss.

    The class variables are defaults of the settings that the user can override.
    """

    learning_rate: ClassVar[float] = 1e-4
    """Peak learning rate; chosen on the miniature world, as notebooks/results/README.md describes."""
    steps: ClassVar[int] = 120
    """Maximum number of steps."""
    forget_threshold: ClassVar[float | None] = None
    """Residual concept similarity at which training ends; None trains to the last step."""
    retain_floor: ClassVar[float | None] = None
    """Retained fidelity below which a validation step is rolled back; None never rolls back."""

    def prepare(self, task: Task) -> Self:
        """Returns the method with its fitted fields filled, the same for the same task."""
        del task
        return self

    def loss(self, student: Student, batch: Batch) -> Terms | Iterator[Terms]:
        """Named, weighted, scalar terms; their sum is minimized.

        A generator yields them in parts that share no pass through the student. Each part is
        differentiated before the next is computed, so that memory holds the activations of one at a time.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StagedMethod(Method):
    """A method with a schedule of stages, such as growing noise.

    A validation step that does not lower `residual` is rolled back and begins the next stage; a
    residual of 0, or the end of the last stage, ends training.
    """

    def stages(self) -> tuple[Self, ...]:
        """The prepared method in each stage."""
        raise NotImplementedError

    def residual(self, student: Student) -> float:
        """The method's own measure of the remaining concept (0-1)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ClosedFormMethod(Hyperparameters):
    """A method that solves for the new weights without a training loop."""

    def solve(self, task: Task) -> Mapping[str, Tensor]:
        """New values of the parameters that change, by their names in `CLIPModel` or in the U-Net."""
        raise NotImplementedError
