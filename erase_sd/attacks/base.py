"""The interface of an attack: what it gets, and what it returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import DivergedError
from .target import Embeds, Target

Access = Literal["black box", "original", "white box"]
"""What an attack reads: the erased model's images only; also the original's text encoder, which is
public; or the erased weights."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One way to ask for the concept: what to generate each of the target's n images from."""

    name: str
    """Name of its row, such as "2 embeddings"; unique among the attack's probes."""
    texts: tuple[str, ...]
    """The prompts, one per image; `<*>` stands for a free embedding."""
    embeds: Embeds
    """The attacked model's encodings of the texts, n rows."""
    found: tuple[str, ...] = ()
    """Words or prompts that the attack has found."""
    original: Embeds | None = None
    """The original model's encodings of the same input, if it can read it."""
    empty: Embeds | None = None
    """The encoding of the empty prompt, if the attack has changed the model."""
    control: bool = False
    """True for a baseline that the attacks are compared with, such as relearning a new word."""
    images: int | None = None
    """How many of the target's images to generate; None: all."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A frozen dataclass of budgets. The first line of its docstring is the citation."""

    access: ClassVar[Access]
    """What the attack reads of the models."""
    through_unet: ClassVar[bool] = True
    """False for a search in the text encoder alone, which is blind to an erasure of the U-Net."""

    def budgets_json(self) -> dict[str, Any]:
        """The budgets, as JSON returns them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def run(self, target: Target) -> list[Probe]:
        """Attacks the target; the same target and seed give the same probes."""
        raise NotImplementedError


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimizer down the gradient of `loss`; DivergedError if a result is not finite."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    results = (tensor for group in optimizer.param_groups for tensor in group["params"])
    if not all(tensor.isfinite().all() for tensor in results):
        rule = "the attack diverged (NaN or infinity); needs a lower learning rate"
        raise DivergedError(rule, field="budgets")


def at_least(bound: float, default: Any) -> Any:
    """A number, or several, of at least `bound`."""
    return dataclasses.field(default=default, metadata={"minimum": bound})
