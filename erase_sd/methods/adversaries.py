"""Adversarial input embeddings: what an attack on an erased text encoder would optimize."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..models.clip import Clip, FreeEmbeddings
from .base import Student, TokenizedPairs


@dataclass(frozen=True)
class AttackedCaptions:
    """n forget captions, in which free embeddings take the place of the concept's name."""

    ids: Tensor
    """Token ids, (n, tokens)."""
    end: Tensor
    """Position of the name's last token, (n,)."""
    original: Tensor
    """The original's hidden states, (n, tokens, width)."""
    target: Tensor
    """The original's hidden states of the concept-removed captions, (n, tokens, width)."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: Tensor) -> AttackedCaptions:
        """Some of the captions."""
        return AttackedCaptions(
            self.ids[chosen], self.end[chosen], self.original[chosen], self.target[chosen]
        )

    def names(self, count: int) -> Tensor:
        """Token ids of the last `count` tokens up to the name's end, (n, count)."""
        return self.ids.gather(1, self.end[:, None] - torch.arange(count - 1, -1, -1))

    def reached(self, count: int) -> Tensor:
        """1 at the positions that read one of `count` free embeddings, else 0, (n, tokens)."""
        first = self.end[:, None] - count + 1
        return (torch.arange(self.ids.shape[1]) >= first).to(self.original)


def free_embeddings(ids: Tensor, end: Tensor, embeddings: Tensor) -> FreeEmbeddings:
    """Embeddings (n, k, width) in place of the last k tokens up to `end` (n,)."""
    count = embeddings.shape[1]
    positions = end[:, None] - torch.arange(count - 1, -1, -1)  # (n, k)
    mask = torch.zeros(ids.shape, dtype=torch.bool).scatter(1, positions, value=True)
    values = embeddings.new_zeros(*ids.shape, embeddings.shape[2])
    spread = positions[:, :, None].expand(embeddings.shape).to(embeddings.device)
    return FreeEmbeddings(mask.to(embeddings.device), values.scatter(1, spread, embeddings))


def sampled(words: Tensor, names: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Random embeddings, (count, tokens, width): near the names, anywhere, and between words.

    A third each: `names` (n, tokens, width) with noise; random directions of a quarter to 64 times the
    norm of `words` (m, width); and points on the line through two words, beyond both by their distance.
    """
    tokens, width = names.shape[1:]
    shape = (count, tokens, 1)
    noise = torch.randn(count, tokens, width, generator=random).to(words)
    near = names[torch.randint(len(names), (count,), generator=random)] + words.std() * noise
    norms = 4.0 ** (4 * torch.rand(shape, generator=random).to(words) - 1)
    anywhere = noise / noise.norm(dim=-1, keepdim=True) * norms * words.norm(dim=-1).mean()
    one, other = (words[torch.randint(len(words), shape[:2], generator=random)] for _ in range(2))
    between = one + (other - one) * (3 * torch.rand(shape, generator=random).to(words) - 1)
    kind = torch.randint(3, (count, 1, 1), generator=random).to(words.device)
    return torch.where(kind == 0, near, torch.where(kind == 1, anywhere, between))


def distance(hidden_states: Tensor, wanted: Tensor, reached: Tensor) -> Tensor:
    """Mean squared distance of the hidden states over the reached positions, (n,)."""
    squared = (hidden_states - wanted).square().mean(-1)
    return (squared * reached).sum(1) / reached.sum(1)


def captions_to_attack(
    clip: Clip, forget: TokenizedPairs, count: int, tokens: int
) -> AttackedCaptions:
    """Up to `count` captions, evenly spread, whose name ends after at least `tokens` tokens.

    Raises SettingError if there is none.
    """
    usable = torch.nonzero(forget.mask.any(1) & (forget.mention_end >= tokens)).flatten()
    if not len(usable):
        rule = f"no forget caption has {tokens} tokens up to the concept's name; needs fewer"
        raise SettingError(rule, field="hyperparameters", value="tokens")
    rows = usable[torch.linspace(0, len(usable) - 1, min(count, len(usable))).long()]
    _, original = clip.encode_texts(forget.ids[rows])
    _, removed = clip.encode_texts(forget.concept_removed_ids[rows])
    return AttackedCaptions(
        forget.ids[rows], forget.mention_end[rows], original, forget.aligned(rows, removed)
    )


def stepped(
    pool: Tensor, members: Tensor, embeddings: Tensor, losses: Tensor, size: float
) -> Tensor:
    """The pool (m, k, width) after a descent step of its `members` (n,).

    `embeddings` (n, k, width) are the members as leaves of the graph of `losses` (n,). The root mean
    square of a step is `size` for the first member and grows to ten times that for the fourth, and so on
    in every four: textual inversion at a high learning rate ends far outside the embedding table.
    """
    [gradient] = torch.autograd.grad(losses.sum(), embeddings)
    total = torch.zeros_like(pool).index_add(0, members.to(pool.device), gradient.to(pool.dtype))
    scale = total.square().mean((1, 2), keepdim=True).sqrt()
    sizes = size * 10 ** (torch.arange(len(pool)) % 4 / 3).to(pool)[:, None, None]
    return torch.where(scale > 0, pool - sizes * total / scale.clamp(min=1e-20), pool)


def student_states(student: Student, captions: AttackedCaptions, embeddings: Tensor) -> Tensor:
    """The student's hidden states of the captions with free embeddings, (n, tokens, width)."""
    free = free_embeddings(captions.ids, captions.end, embeddings)
    _, hidden_states = student.text(captions.ids, free=free)
    return hidden_states
