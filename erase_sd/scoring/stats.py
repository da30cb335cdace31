"""Interval and test of detection rates."""

from __future__ import annotations


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson, 1927), without continuity correction."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value (McNemar, 1947) for a hit being as likely to be lost as to be gained."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
