"""Detection rates: pure functions of matches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..data.pair import PROMPT_KINDS
from ..run.measurements import RATE_GROUPS, Change, Rate, RateComparison
from .matching import Match
from .stats import mcnemar, wilson

THRESHOLD = 0.25
"""Minimum probability of a detection that counts (YOLOv5's default)."""
THRESHOLDS = (0.1, 0.25, 0.5)


def compare_rates(
    run: str,
    concept: str,
    matches: Sequence[Match],
    threshold: float = THRESHOLD,
    by_class: bool = False,
) -> list[RateComparison]:
    """Rates of each kind of prompt and group that has matches, plain prompts first.

    `by_class` separates the classes of a group.
    """
    rates = []
    for kind, group in itertools.product(PROMPT_KINDS, RATE_GROUPS):
        members = [match for match in matches if (match.kind, match.group) == (kind, group)]
        classes = sorted({match.class_name for match in members}) if by_class else [None]
        for name in classes:
            chosen = [match for match in members if name in (None, match.class_name)]
            if chosen:
                rates.append(_compare(run, concept, chosen, threshold, name))
    return rates


def _compare(
    run: str, concept: str, matches: Sequence[Match], threshold: float, class_name: str | None
) -> RateComparison:
    """Rates of the matches of one kind and group."""
    original = [match.original >= threshold for match in matches]
    erased = [match.erased >= threshold for match in matches]
    compared = [
        (match.reference >= threshold, match.erased >= threshold)
        for match in matches
        if match.reference is not None
    ]
    reference = [hit for hit, _ in compared]
    return RateComparison(
        run=run,
        concept=concept,
        group=matches[0].group,
        kind=matches[0].kind,
        class_name=class_name,
        threshold=threshold,
        original=rate_of(original),
        erased=rate_of(erased),
        change=_change(original, erased),
        reference=rate_of(reference) if compared else None,
        reference_change=_change(reference, [hit for _, hit in compared]) if compared else None,
    )


def rate_of(hits: Sequence[bool]) -> Rate:
    """The rate of one or more images, with its 95 % Wilson interval."""
    n, detected = len(hits), sum(hits)
    low, high = wilson(detected, n)
    return Rate(value=detected / n, n=n, detected=detected, low=low, high=high)


def _change(before: Sequence[bool], after: Sequence[bool]) -> Change:
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    difference = (sum(after) - sum(before)) / len(before)
    return Change(difference=difference, p_value=mcnemar(lost, gained))


def percent(rate: Rate, decimals: int = 0, unit: str = "") -> str:
    """A rate in per cent with its interval, "94 [83, 98]"; the `unit` follows the rate."""
    value, low, high = (f"{100 * x:.{decimals}f}" for x in (rate.value, rate.low, rate.high))
    return f"{value}{unit} [{low}, {high}]"
