"""CLIP-side measures as pure functions of tensors: no files, no models.

Features are unit-norm rows, so that their product is their cosine similarity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.pair import ConceptSet
from ..scoring.stats import wilson

DRIFT_GROUPS = ("start", "subject", "words", "end", "padding")
"""Groups of a caption's tokens: `<|startoftext|>`, the concept, all other words, `<|endoftext|>`,
and the padding after it."""


@dataclass(frozen=True)
class Estimate:
    """A measure over n queries with its 95 % interval, which is None if n is too small for one."""

    value: float
    n: int
    low: float | None
    high: float | None


Estimates = dict[tuple[str, ConceptSet], Estimate]
"""Estimates by measure and concept set. A set without queries for a measure is absent."""


def estimate_share(hits: Tensor) -> Estimate:
    """Share of true values in `hits` (n,), bool with n > 0, with Wilson's interval."""
    count, n = int(hits.sum()), len(hits)
    return Estimate(count / n, n, *wilson(count, n))


def estimate_mean(values: Tensor, top: float) -> Estimate:
    """Mean of `values` (n,), each between 0 and `top`.

    The interval is the normal approximation of the standard error, clipped to 0 and `top`.
    """
    values = values.double()
    value, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(value, n, None, None)
    half = 1.959964 * float(values.std()) / n**0.5
    return Estimate(value, n, max(value - half, 0.0), min(value + half, top))


def ranks(similarity: Tensor, correct: Tensor) -> Tensor:
    """Rank, from 1, of the best correct answer to each query, (queries,).

    `similarity` and `correct` (bool) are (queries, answers). A query may have several correct
    answers and needs at least one; the others do not lower its rank. A wrong answer with the same
    score ranks first, so that a model that maps everything to one feature retrieves nothing,
    whatever the order of the answers.
    """
    best = similarity.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & ~correct).sum(1)


def average_precision(scores: Tensor, correct: Tensor) -> float:
    """Average precision of one query; answers with the same score count together.

    `scores` and `correct` (bool, at least one true) are (answers,).
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(correct.numpy(), scores.numpy()))


def class_features(prompts: Tensor) -> Tensor:
    """Radford et al. 2021, section 3.1.4, arXiv 2103.00020: a class is the normalized mean of the
    unit-norm features of its prompts. (classes, templates, d) to (classes, d)."""
    return F.normalize(prompts.mean(1), dim=-1)


def drift_by_group(before: Tensor, after: Tensor, groups: Tensor) -> Tensor:
    """Mean cosine distance (0-2) between each text's hidden states before and after, by token group.

    `before` and `after` are (n, tokens, width); `groups` (n, tokens) holds each token's index in
    DRIFT_GROUPS. Returns (n, groups), NaN where a text has no token of a group. The unit is the text,
    because the tokens of one text change together.
    """
    cosine = F.cosine_similarity(before.double(), after.double(), dim=-1)  # (n, tokens)
    member = F.one_hot(groups, len(DRIFT_GROUPS)).double()  # (n, tokens, groups)
    return ((1 - cosine).clamp(0, 2)[:, :, None] * member).sum(1) / member.sum(1)
