"""Hardened CLIPErase (this project): the anchored method, trained against adversarial embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..models.clip import Clip
from . import adversaries
from .adversaries import AttackedCaptions, free_embeddings
from .base import Batch, Student, Task, Terms, fitted, greater_than, minimum
from .cliperase_anchored import AnchoredCLIPErase


@dataclass(frozen=True, kw_only=True)
class HardenedCLIPErase(AnchoredCLIPErase):
    """This project, after Zhang et al. (AdvUnlearn, arXiv 2405.15234): anchored, with adversaries.

    Free input embeddings take the place of the concept's name and are optimized, a few steps per training
    step, so that the current student's hidden states approach the original's. The student is trained to
    return the same concept-removed targets for them as for the name.

    Differs: AdvUnlearn perturbs each prompt anew in every round and retains whole images; here a pool of
    embeddings persists from step to step, and hidden states are retained, also those of captions with
    random noisy words, so that robustness against embeddings does not come at the cost of other words.
    """

    steps: ClassVar[int] = 240
    forget_threshold: ClassVar[float | None] = None
    token_weight: float = 400.0
    """Weight of the mean squared change of the retain captions' hidden states (ours: eight times that
    of cliperase-anchored)."""
    adversary_weight: float = 60.0
    """Weight of the mean squared distance between the hidden states under adversarial embeddings and
    those of the concept-removed captions (ours); 0 switches hardening off."""
    neighbour_weight: float = 25.0
    """Weight of the mean squared change of the hidden states of retain captions, twice as many as
    `rows`, with one word replaced by the noisy embedding of another (ours)."""
    start: float = 0.1
    """Share of the steps (0-1) before the adversaries begin (ours)."""
    rows: int = minimum(1, 24)
    """Captions with adversarial embeddings per step (ours)."""
    captions: int = minimum(1, 192)
    """Forget captions in which adversarial embeddings are placed (ours)."""
    tokens: int = minimum(1, 2)
    """Maximum number of free embeddings in place of the name; each step samples a number from 1 to it
    (ours)."""
    pool: int = minimum(1, 24)
    """Adversaries in the pool, which persist from step to step (ours)."""
    step_size: float = greater_than(0, 0.02)
    """Root mean square of the smallest adversary's step (ours: the spread of CLIP's token embeddings);
    others take up to ten times as much."""
    attack_steps: int = minimum(1, 4)
    """Optimization steps of the adversaries per training step (ours)."""
    restart: float = 0.02
    """Probability per step that an adversary restarts at a random embedding (ours)."""
    random: float = 0.3
    """Share of the captions whose adversary is replaced by a random embedding (ours)."""
    attacked: AttackedCaptions = fitted()
    """The captions with free embeddings."""
    words: Tensor = fitted()
    """Input embeddings of the words of the retain captions, (words, width)."""
    names: Tensor = fitted()
    """Input embeddings of the concept's names in `attacked`, (captions, tokens, width)."""
    original: Clip = fitted()
    """The original model."""

    def prepare(self, task: Task) -> Self:
        """Chooses the captions to attack, and encodes them with the original."""
        attacked = adversaries.captions_to_attack(
            task.clip, task.forget, self.captions, self.tokens
        )
        table = task.clip.model.text_model.embeddings.token_embedding.weight.detach()
        names = attacked.names(self.tokens)  # (captions, tokens)
        tokenizer = task.clip.tokenizer
        excluded = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        excluded |= set(names[:, -1].tolist())
        words = [word for word in task.retain.ids.unique().tolist() if word not in excluded]  # type: ignore[no-untyped-call]
        return dataclasses.replace(
            self,
            attacked=attacked,
            words=table[words].clone(),
            names=table[names].clone(),
            original=task.clip,
        )

    def loss(self, student: Student, batch: Batch) -> Iterator[Terms]:
        """Those of cliperase-anchored, then `adversary` and `neighbour` if they have a weight."""
        yield from super().loss(student, batch)
        if self.adversary_weight and batch.done >= self.start:
            yield {"adversary": self.adversary_weight * self._attacked(student, batch)}
        if self.neighbour_weight:
            yield {"neighbour": self.neighbour_weight * self._neighbours(student, batch)}

    def _attacked(self, student: Student, batch: Batch) -> Tensor:
        """Steps the adversaries against the student; returns the student's distance to the targets under
        them."""
        random = batch.generator
        pool = self._restarted(batch.memory.get("pool"), random)
        count = int(torch.randint(1, self.tokens + 1, (1,), generator=random))
        rows = self.attacked.rows(torch.randint(len(self.attacked), (self.rows,), generator=random))
        members = torch.randint(len(pool), (self.rows,), generator=random)
        reached = rows.reached(count)
        for _ in range(self.attack_steps):
            leaves = pool[members].requires_grad_()
            states = adversaries.student_states(student, rows, leaves[:, -count:])
            losses = adversaries.distance(states, rows.original, reached)
            pool = adversaries.stepped(pool, members, leaves, losses, self.step_size)
        batch.memory["pool"] = pool
        is_random = torch.rand(self.rows, generator=random)[:, None, None] < self.random
        fresh = self._sampled(self.rows, random)
        embeddings = torch.where(is_random.to(pool.device), fresh, pool[members])
        states = adversaries.student_states(student, rows, embeddings[:, -count:])
        return adversaries.distance(states, rows.target, reached).mean()

    def _restarted(self, pool: Tensor | None, random: torch.Generator) -> Tensor:
        """The pool, (pool, tokens, width), with some adversaries at new random embeddings."""
        fresh = self._sampled(self.pool, random)
        anew = torch.rand(self.pool, generator=random)[:, None, None] < self.restart
        return fresh if pool is None else torch.where(anew.to(pool.device), fresh, pool)

    def _sampled(self, count: int, random: torch.Generator) -> Tensor:
        return adversaries.sampled(self.words, self.names, count, random)

    def _neighbours(self, student: Student, batch: Batch) -> Tensor:
        """Change of the hidden states of retain captions with a random, noisy word in them."""
        ids, random = batch.retain.ids[: 2 * self.rows], batch.generator
        last = self.original.ends(ids) - 1
        place = 1 + (torch.rand(len(ids), generator=random) * last).long().clamp(max=last - 1)
        word = self.words[torch.randint(len(self.words), (len(ids), 1), generator=random)]
        noise = torch.rand(len(ids), 1, 1, generator=random) * torch.randn(
            word.shape, generator=random
        )
        free = free_embeddings(ids, place, word + self.words.std() * noise.to(word))
        with torch.no_grad():
            _, before = self.original.encode_text(ids, free=free)
        _, now = student.text(ids, free=free)
        return (now - before).square().mean()
