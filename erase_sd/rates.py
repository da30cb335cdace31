"""Scores: pure functions of tables of images and detections. No file, no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import SettingError
from .pairs.classes import named_classes
from .pairs.concepts import Concept

Group = Literal["target", "retained_same", "retained_other"]
GROUPS: tuple[Group, ...] = ("target", "retained_same", "retained_other")
THRESHOLDS = (0.1, 0.25, 0.5)
THRESHOLD = 0.25  # YOLOv5's own default


@dataclass(frozen=True)
class Pair:
    """One class that one prompt names, looked for in both images of one seed.

    `original` and `erased` are the most probable detection's probability, 0 where there is none.
    """

    prompt: str
    group: Group
    name: str
    original: float
    erased: float


@dataclass(frozen=True)
class Row:
    """A detection rate with its 95 % Wilson interval; the erased arm also against the original.

    `difference` is erased less original; `p_value` is McNemar's exact test on the same seeds.
    """

    run: str
    concept: str
    group: Group
    arm: Literal["original", "erased"]
    threshold: float
    rate: float
    n: int
    low: float
    high: float
    found: int
    difference: float | None
    p_value: float | None
    name: str | None = None
    """The class, in rows of a single class; None in rows of all."""


def wilson(found: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson, 1927), without continuity correction."""
    from scipy.stats import binomtest

    interval = binomtest(found, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value (McNemar, 1947): are as many pairs lost as gained?"""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def check_class(target: str, names: Sequence[str]) -> None:
    """SettingError, with the nearest of the detector's `names`, where `target` is none of them."""
    if target not in names:
        from difflib import get_close_matches

        near = get_close_matches(target, names, n=5, cutoff=0.0)
        raise SettingError(
            f"--detector-class {target}: the detector has no such class; near: {', '.join(near)}"
        )


def pairs_of(
    images: Iterable[dict[str, Any]],
    detections: dict[str, list[dict[str, Any]]],
    concept: Concept,
    target: str,
    erased: Sequence[Concept],
    names: Sequence[str],
) -> list[Pair]:
    """What each prompt names, looked for in both arms.

    `images` are rows of `images.jsonl`, `detections` maps their files to boxes; `target` is the
    concept's class, `erased` all concepts of the run, `names` the detector's classes. A class that
    a prompt names counts once an image. Raises SettingError where a class is none of the
    detector's, and where an image lacks its other arm.
    """
    check_class(target, names)
    best: dict[tuple[str, str, int], dict[str, dict[str, float]]] = {}
    for image in images:
        top: dict[str, float] = {}
        for box in detections[image["file"]]:
            top[box["class"]] = max(top.get(box["class"], 0.0), box["probability"])
        best.setdefault((image["prompts"], image["prompt"], image["seed"]), {})[image["arm"]] = top
    pairs = []
    for (_, prompt, seed), arms in best.items():
        if set(arms) != {"original", "erased"}:
            raise SettingError(
                f"prompt {prompt!r}, seed {seed}: one arm is missing; generate again"
            )
        hit = concept.in_text(prompt)
        gone = {target} | {e.name for e in erased}
        named = [n for n in named_classes(prompt, names) if n not in gone]
        rest: Group = "retained_same" if hit else "retained_other"
        looked: list[tuple[Group, str]] = [("target", target)] if hit else []
        looked += [(rest, n) for n in named]
        pairs += [
            Pair(
                prompt, group, name, arms["original"].get(name, 0.0), arms["erased"].get(name, 0.0)
            )
            for group, name in looked
        ]
    return pairs


def rows_of(
    run: str,
    concept: str,
    pairs: Sequence[Pair],
    threshold: float = THRESHOLD,
    by_class: bool = False,
) -> list[Row]:
    """Two rows, original and erased, for each group that has pairs; by class on request."""
    rows = []
    for group in GROUPS:
        inside = [p for p in pairs if p.group == group]
        classes = sorted({p.name for p in inside}) if by_class else [None]
        for name in classes:
            chosen = [p for p in inside if name in (None, p.name)]
            if chosen:
                rows += _two_rows(run, concept, group, chosen, threshold, name)
    return rows


def _two_rows(
    run: str, concept: str, group: Group, pairs: Sequence[Pair], threshold: float, name: str | None
) -> list[Row]:
    n = len(pairs)
    before = [p.original >= threshold for p in pairs]
    after = [p.erased >= threshold for p in pairs]
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    difference, p_value = (sum(after) - sum(before)) / n, mcnemar(lost, gained)
    return [
        Row(run, concept, group, "original", threshold, sum(before) / n, n, *wilson(sum(before), n),
            sum(before), None, None, name),
        Row(run, concept, group, "erased", threshold, sum(after) / n, n, *wilson(sum(after), n),
            sum(after), difference, p_value, name),
    ]  # fmt: skip


def as_json(row: Row) -> dict[str, Any]:
    """A row as plain JSON; `name` only where the row is of one class."""
    return {k: v for k, v in asdict(row).items() if k != "name" or v is not None}
