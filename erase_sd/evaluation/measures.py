"""CLIP-side measures: pure functions of tensors. No file, no model.

Features are unit-norm rows, so that their product is their cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..scoring.rates import wilson

DRIFT_GROUPS = ("start", "subject", "words", "end", "padding")
"""Of a caption's tokens: the start, the concept's, all other words, the end, and what follows it."""


@dataclass(frozen=True)
class Estimate:
    """A measure over n things, with its 95 % interval; None where n is too small for one."""

    value: float
    n: int
    low: float | None
    high: float | None


def share(hits: Tensor) -> Estimate:
    """The share of `hits`, (n,) of bool with n > 0, and Wilson's interval."""
    found, n = int(hits.sum()), len(hits)
    return Estimate(found / n, n, *wilson(found, n))


def mean(values: Tensor, top: float) -> Estimate:
    """The mean of `values`, (n,), each 0 to `top`; its interval is the normal approximation of the
    standard error, cut off at 0 and `top`."""
    values = values.double()
    value, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(value, n, None, None)
    half = 1.959964 * float(values.std()) / n**0.5
    return Estimate(value, n, max(value - half, 0.0), min(value + half, top))


def ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """The rank, from 1, of each query's best right answer, (queries,).

    `similarity` and `right` (bool) are (queries, answers); a query may have several right answers,
    and has one at least. The other right answers do not push it back. A wrong answer that scores
    the same stands before it: what a model cannot tell apart, it has not found. So a model that
    gives everything one feature finds nothing, whatever the order of the answers.
    """
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & ~right).sum(1)


def average_precision(scores: Tensor, right: Tensor) -> float:
    """Average precision of one query: the mean, over its right answers, of the share of right ones
    among all that score as high or higher.

    `scores` and `right` (bool, one at least) are (answers,). Answers of one score count together, as
    in scikit-learn: where all score the same, it is the share of right ones.
    """
    found = scores[right]
    above = scores >= found[:, None]  # (right ones, answers)
    return float(((above & right).sum(1) / above.sum(1)).double().mean())


def class_features(prompts: Tensor) -> Tensor:
    """Radford et al. 2021, section 3.1.4, arXiv 2103.00020: a class is the mean of the unit-norm
    features of its prompts, made unit-norm again. (classes, templates, d) to (classes, d)."""
    return F.normalize(prompts.mean(1), dim=-1)


def drift(before: Tensor, after: Tensor, groups: Tensor) -> Tensor:
    """How far each text's token states went: the mean cosine distance, 0 to 2, in each of
    DRIFT_GROUPS; NaN where a text has no token of the group.

    `before` and `after` are (n, tokens, width), `groups` (n, tokens) the group's number of each
    token. Gives (n, groups): tokens of one text move together, so the text is what is counted.
    """
    cosine = F.cosine_similarity(before.double(), after.double(), dim=-1)  # (n, tokens)
    inside = F.one_hot(groups, len(DRIFT_GROUPS)).double()  # (n, tokens, groups)
    return ((1 - cosine).clamp(0, 2)[:, :, None] * inside).sum(1) / inside.sum(1)
