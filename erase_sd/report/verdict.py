"""Did it work? The answer in plain words, with the counts that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from ..scoring.rates import Row, lines_of
from .data import Data
from .shots import Shot

FEWEST = 6  # with fewer, even a loss of all is no evidence: McNemar's p is above 0.05
GONE = 0.05
FALL = 0.05
KEPT = 0.9
RULES = (
    f"Gone: detected in at most {100 * GONE:.0f} % of the erased images, and the fall from the "
    "original is more than chance (p < 0.05). Mostly gone: the rate is at most half of the "
    "original's; weakened: above half; each with p < 0.05. Still there: the rate did not fall, or "
    "chance alone could explain it.",
    f"Other objects are kept: in neither group did the rate fall by {100 * FALL:.0f} points or "
    f"more, or with p < 0.05, and at least {100 * KEPT:.0f} % of what the original images show is "
    "still there. Damaged: the rate of a group fell with p < 0.05. May have suffered: anything "
    "between.",
    f"Below {FEWEST} detections in the original images nothing is said: even a loss of all of them "
    "could be chance.",
)


@dataclass(frozen=True)
class Verdict:
    """The headline's sentences, the last about the other objects, and the counts under it."""

    judgements: tuple[str, ...]
    evidence: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return " ".join(self.judgements)


def verdict_of(data: Data, shots: list[Shot]) -> Verdict:
    """The verdict on a run, by its plain prompts; of one that is not scored, that it cannot be
    judged yet."""
    if not data.scores:
        return Verdict(("Not judged yet.",))
    lines = lines_of(row for row in data.scores.rows if row.kind is None)
    pairs = [(before, after) for before, after, _ in lines]
    targets = {after.concept: (before, after) for before, after in pairs if after.group == "target"}
    others = [(before, after) for before, after in pairs if after.group != "target"]
    plain = [p for s in shots for p in s.others if p.kind is None]
    shown = [p for p in plain if p.original >= data.threshold]
    lost = [pair.name for pair in shown if pair.erased < data.threshold]
    judgements, evidence, alike = [], [], []
    for concept in data.concepts:
        name = concept.name[:1].upper() + concept.name[1:]
        if found := targets.get(concept.name):
            judgements.append(f"{name}{_target(*found)}")
            evidence.append(f"{name}: {_detected(*found)}")
            alike += _alike(data, concept.name, lost)
        else:
            judgements.append(f"{name}: no prompt names it.")
    judgements.append(f"Other objects{_others(others, len(shown), len(lost))}")
    if others:
        evidence.append(f"Other objects: {_kept(others, len(shown), len(lost))}")
    return Verdict(tuple(judgements), tuple(evidence + alike))


def _target(before: Row, after: Row) -> str:
    assert after.difference is not None and after.p_value is not None
    if before.found < FEWEST:
        return ": too few to judge."
    if after.p_value >= 0.05 or after.difference >= 0:
        return " is still there."
    if after.rate <= GONE:
        return " is gone."
    return " is mostly gone." if after.rate <= before.rate / 2 else " is weakened, not gone."


def _others(pairs: list[tuple[Row, Row]], shown: int, lost: int) -> str:
    if sum(before.found for before, _ in pairs) < FEWEST:
        return ": too few to judge."
    changes = [(after.difference or 0.0, after.p_value or 0.0) for _, after in pairs]
    if any(change < 0 and p < 0.05 for change, p in changes):
        return " are damaged."
    if any(change <= -FALL for change, _ in changes) or shown - lost < KEPT * shown:
        return " may have suffered."
    return " are kept."


def _detected(before: Row, after: Row) -> str:
    return (
        f"detected in {before.found} of {before.n} original images and in {after.found} of "
        f"{after.n} erased."
    )


def _kept(pairs: list[tuple[Row, Row]], shown: int, lost: int) -> str:
    concept = pairs[0][1].concept  # with several concepts, the others are the same for each
    of = [(before, after) for before, after in pairs if after.concept == concept]
    before, after = sum(b.found for b, _ in of), sum(a.found for _, a in of)
    counts = f"of {sum(a.n for _, a in of)} that the prompts name, {before} were found before and {after} after."
    if not shown:
        return counts
    return f"{shown - lost} of the {shown} that the original images show are still there; {counts}"


def _alike(data: Data, concept: str, lost: list[str]) -> list[str]:
    """A line for each look-alike of the concept that any prompt names."""
    assert data.scores is not None
    lines = []
    for name in data.look_alikes(concept):
        wanted = (concept, name, None)
        rows = [r for r in data.scores.by_class if (r.concept, r.name, r.kind) == wanted]
        if rows:
            before, after = (
                sum(r.found for r in rows if r.arm == arm) for arm in ("original", "erased")
            )
            change = f"{lost.count(name)} lost" if name in lost else "untouched"
            n = sum(row.n for row in rows if row.arm == "erased")
            lines.append(f"Look-alike {name}: {change}, {before} of {n} before and {after} after.")
    return lines
