"""High-level representation misdirection (HiRM, ICLR 2026), as a secondary source describes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .base import Batch, Method, Student, World, made


@dataclass(frozen=True, kw_only=True)
class HiRM(Method):
    """HiRM (ICLR 2026, from a secondary source): the first text layer alone turns the concept away.

    The last layer's states of the concept's prompts, at every position, go to one direction, that of
    another word or a random one. Differs: the start token stays out, as every caption shares it.
    """

    rate: ClassVar[float] = 3e-4
    trained: ClassVar[str] = "the first layer of the text tower"
    toward: str = "random"
    """A word whose last state is the direction, such as the concept's superclass; or random."""
    templates: tuple[str, ...] = ("{}", "a {}", "a picture of a {}")
    """The concept's prompts (inferred)."""
    ids: Tensor = made()
    """Of the prompts, (n, tokens)."""
    target: Tensor = made()
    """The direction, at the length of the original's states, (width,)."""

    def prepare(self, world: World) -> Self:
        """The prompts' tokens, and the direction."""
        ids = world.clip.tokens([t.format(name) for name in world.concepts for t in self.templates])
        _, states = world.clip.encode_texts(ids)
        if self.toward == "random":
            generator = torch.Generator().manual_seed(world.seed)
            target = torch.randn(states.shape[-1], generator=generator).to(states.device)
        else:
            target = world.clip.encode_texts(world.clip.tokens([self.toward]))[1][0, -1]
        length = states[:, 1:].norm(dim=-1).mean()
        return dataclasses.replace(self, ids=ids, target=target / target.norm() * length)

    def trains(self, name: str) -> bool:
        """The first layer's parameters."""
        return name.startswith("text_model.encoder.layers.0.")

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """One scalar: the mean squared distance to the direction, over positions from 1 on."""
        del batch
        _, states = student.text(self.ids)
        return {"redirect": (states[:, 1:] - self.target).square().mean()}
