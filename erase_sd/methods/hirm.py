"""High-level representation misdirection (HiRM, ICLR 2026), as described in a secondary source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .base import Batch, Method, Need, Student, Task, fitted
from .losses import fill


@dataclass(frozen=True, kw_only=True)
class HiRM(Method):
    """HiRM (ICLR 2026, from a secondary source): the first text layer misdirects the concept.

    The last layer's hidden states of prompts for the concept, at every position, are pulled to one
    direction. Differs: the start token is left out, because all captions share it.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"clip_layers"})
    learning_rate: ClassVar[float] = 3e-4
    trained_parameters: ClassVar[str] = "the first layer of the text tower"
    toward: str = "random"
    """Word whose last hidden state is the direction, such as the concept's superclass; `random`
    samples a direction instead (both in the source)."""
    templates: tuple[str, ...] = ("{}", "a {}", "a picture of a {}")
    """Prompts for the concept, with {} for its name (inferred)."""
    ids: Tensor = fitted()
    """Token ids of the prompts, (n, tokens)."""
    target: Tensor = fitted()
    """The direction, scaled to the mean norm of the original's hidden states, (width,)."""

    def prepare(self, task: Task) -> Self:
        """Tokenizes the prompts and chooses the direction."""
        ids = task.clip.tokens([fill(t, name) for name in task.concepts for t in self.templates])
        _, hidden_states = task.clip.encode_texts(ids)
        if self.toward == "random":
            generator = torch.Generator().manual_seed(task.seed)
            direction = torch.randn(hidden_states.shape[-1], generator=generator)
            direction = direction.to(hidden_states.device)
        else:
            direction = task.clip.encode_texts(task.clip.tokens([self.toward]))[1][0, -1]
        norm = hidden_states[:, 1:].norm(dim=-1).mean()
        return dataclasses.replace(self, ids=ids, target=direction / direction.norm() * norm)

    def trains(self, name: str) -> bool:
        """Whether the parameter belongs to the first layer."""
        return name.startswith("text_model.encoder.layers.0.")

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `redirect`: mean squared distance to the direction, from position 1 on."""
        del batch
        _, hidden_states = student.text(self.ids)
        return {"redirect": (hidden_states[:, 1:] - self.target).square().mean()}
