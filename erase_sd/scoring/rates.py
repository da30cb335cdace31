"""Scores: pure functions of tables of images and detections. No file, no model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..data.coco import named_classes
from ..data.concept import Concept
from ..data.kinds import KINDS, MEANT, Kind, is_of, read_name
from ..errors import SettingError

Group = Literal["target", "retained_same", "retained_other"]
Arm = Literal["original", "erased", "reference"]
GROUPS: tuple[Group, ...] = ("target", "retained_same", "retained_other")
THRESHOLDS = (0.1, 0.25, 0.5)
THRESHOLD = 0.25  # YOLOv5's own default


@dataclass(frozen=True)
class Pair:
    """One class that one prompt names, looked for in both images of one seed.

    `original` and `erased` are the most probable detection's probability, 0 where there is none;
    `reference` is that in the original's image of the prompt without the concept, None where there
    is no such image or its text no longer names the class. `kind` is None for plain prompts.
    """

    prompt: str
    group: Group
    name: str
    original: float
    erased: float
    reference: float | None = None
    kind: Kind | None = None


@dataclass(frozen=True)
class Row:
    """A detection rate with its 95 % Wilson interval; erased and original are compared in the erased
    arm's row, erased and reference in the reference's.

    `difference` is erased less the other; `p_value` is McNemar's exact test on the same seeds.
    """

    run: str
    concept: str
    group: Group
    arm: Arm
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
    kind: Kind | None = None
    """The kind of the prompts; None: those of the plain files."""


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
    """What each prompt names, looked for in both arms, and in the reference's where it was drawn.

    `images` are rows of `images.jsonl`, `detections` maps their files to boxes; `target` is the
    concept's class, `erased` all concepts of the run, `names` the detector's classes. A class that
    a prompt names counts once an image. The prompts of a kind count for the concept that they are
    of; what stands beside another erased concept counts with that one. Raises SettingError where a class is none of the detector's, and where an image lacks its
    other arm.
    """
    check_class(target, names)
    shots: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for image in images:
        key = (image["prompts"], image["prompt"], image["seed"])
        shots.setdefault(key, {})[image["arm"]] = image
    gone = {target} | {e.name for e in erased}
    others = [e for e in erased if e.name not in (concept.name, target)]
    pairs = []
    for (prompts, prompt, seed), arms in shots.items():
        if not {"original", "erased"} <= set(arms):
            raise SettingError(
                f"prompt {prompt!r}, seed {seed}: one arm is missing; generate again"
            )
        owner, kind = read_name(prompts)
        if kind and not is_of(owner, concept.name):
            continue
        hit = concept.in_text(prompt)
        if not kind and not hit and any(e.in_text(prompt) for e in others):
            continue
        meant = kind in MEANT if kind else hit
        rest: Group = "retained_same" if meant else "retained_other"
        looked: list[tuple[Group, str]] = [("target", target)] if meant else []
        looked += [(rest, n) for n in named_classes(prompt, names) if n not in gone]
        fair: set[str] = set()
        if meant and hit and "reference" in arms:
            fair = {target, *named_classes(arms["reference"]["text"], names)}
        best = {arm: _best(detections[image["file"]]) for arm, image in arms.items()}
        for group, name in looked:
            before, after = (best[arm].get(name, 0.0) for arm in ("original", "erased"))
            reference = best["reference"].get(name, 0.0) if name in fair else None
            pairs.append(Pair(prompt, group, name, before, after, reference, kind))
    return pairs


def _best(boxes: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The most probable detection of each class."""
    top: dict[str, float] = {}
    for box in boxes:
        top[box["class"]] = max(top.get(box["class"], 0.0), box["probability"])
    return top


def rows_of(
    run: str,
    concept: str,
    pairs: Sequence[Pair],
    threshold: float = THRESHOLD,
    by_class: bool = False,
) -> list[Row]:
    """Rows of original and erased, and of the reference where there is one, for each group that has
    pairs: of the plain prompts, then of each kind; by class on request."""
    rows = []
    for kind, group in itertools.product((None, *KINDS), GROUPS):
        inside = [p for p in pairs if (p.kind, p.group) == (kind, group)]
        classes = sorted({p.name for p in inside}) if by_class else [None]
        for name in classes:
            chosen = [p for p in inside if name in (None, p.name)]
            if chosen:
                rows += _line(run, concept, chosen, threshold, name)
    return rows


def _line(
    run: str, concept: str, pairs: Sequence[Pair], threshold: float, name: str | None
) -> list[Row]:
    """The rows of pairs of one group and kind."""

    def row(arm: Arm, seen: Sequence[bool], difference: float | None, p_value: float | None) -> Row:
        n, found = len(seen), sum(seen)
        return Row(
            run, concept, pairs[0].group, arm, threshold, found / n, n, *wilson(found, n), found,
            difference, p_value, name, pairs[0].kind,
        )  # fmt: skip

    before = [p.original >= threshold for p in pairs]
    after = [p.erased >= threshold for p in pairs]
    rows = [row("original", before, None, None), row("erased", after, *_change(before, after))]
    both = [(p.reference, p.erased) for p in pairs if p.reference is not None]
    if both:
        fair, ours = ([value >= threshold for value in arm] for arm in zip(*both, strict=True))
        rows.append(row("reference", fair, *_change(fair, ours)))
    return rows


def _change(before: list[bool], after: list[bool]) -> tuple[float, float]:
    """Difference of the rates, and McNemar's p-value."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    return (sum(after) - sum(before)) / len(before), mcnemar(lost, gained)


def lines_of(rows: Iterable[Row]) -> list[tuple[Row, Row, Row | None]]:
    """Original, erased, and reference where there is one, of each line of a table."""
    lines: list[list[Row]] = []
    for row in rows:
        if row.arm == "original":
            lines.append([])
        lines[-1].append(row)
    return [(line[0], line[1], line[2] if len(line) > 2 else None) for line in lines]


def as_json(row: Row) -> dict[str, Any]:
    """A row as plain JSON; `name` only where it is of one class, `kind` only where it is of one."""
    return {k: v for k, v in asdict(row).items() if k not in ("name", "kind") or v is not None}
