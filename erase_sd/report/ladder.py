"""How deep an erasure goes: from prompts that name the concept down to attacks, and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..attacks.table import label_of
from ..data.coco import named_classes
from ..data.pair import PromptKind
from ..run.measurements import AttackRecord, RateComparison
from ..run.records import ImageRecord
from ..scoring.rates import percent
from ..scoring.table import object_of
from .data import SHOWN_VARIANTS, ReportData

LADDER_HEADINGS = ("rung", "n", "original", "erased")
_ADDED: dict[PromptKind, str] = {
    "plain": "prompts that name the concept",
    "synonym": "synonym prompts",
    "name-free": "name-free prompts",
}
_percent = functools.partial(percent, unit=" %")


def ladder_lines(data: ReportData) -> list[list[str]]:
    """A line for each rung of each concept: names it, other wordings, attacks, what is retained, and
    objects that no prompt names. Empty before scoring."""
    if not data.scores:
        return []
    lines = []
    for concept in (concept.name for concept in data.concepts):
        own = [rates for rates in data.scores.rates if rates.concept == concept]
        lines += [_rate_line(rates) for rates in own if rates.group == "target"]
        lines += [_attack_line(row) for row in attack_rows(data, concept)]
        lines += [_rate_line(rates) for rates in own if rates.group != "target"]
        lines += _added_lines(data, concept)
    return lines


def _rate_line(rates: RateComparison) -> list[str]:
    named = (rates.group, rates.kind) == ("target", "plain")
    label = f"{rates.concept}, prompts that name it" if named else object_of(rates)
    return [label, str(rates.erased.n), _percent(rates.original), _percent(rates.erased)]


def attack_rows(data: ReportData, concept: str) -> list[AttackRecord]:
    """The attacks on a concept, without the row of no attack."""
    rows = data.attacks.rows if data.attacks else ()
    return [row for row in rows if row.concept == concept and row.attack != "none"]


def strongest_first(rows: Sequence[AttackRecord]) -> list[AttackRecord]:
    """The rows of attacks, without their yardsticks, highest rate first."""
    own = [row for row in rows if not row.control]
    return sorted(own, key=lambda row: -row.attacked.value)


def depth_lines(data: ReportData, concept: str) -> list[str]:
    """Counts for prompts that do not name the concept, and for attacks."""
    assert data.scores is not None
    name = concept[:1].upper() + concept[1:]
    lines = [
        f"{name}, {rates.kind} prompts: detected in {rates.original.detected} of {rates.original.n} "
        f"original images and in {rates.erased.detected} of {rates.erased.n} erased images."
        for rates in data.scores.rates
        if (rates.concept, rates.group) == (concept, "target") and rates.kind != "plain"
    ]
    if rows := strongest_first(attack_rows(data, concept)):
        worst = rows[0]
        attacks = len({row.attack for row in rows})
        lines.append(
            f"{name}, under {attacks} attack{'s' * (attacks > 1)}: at most {worst.attacked.detected} of "
            f"{worst.attacked.n} images ({label_of(worst)}); without an attack "
            f"{worst.no_attack.detected} of {worst.no_attack.n}."
        )
    elif data.attacks or not (data.run.folder / "attacks.json").is_file():
        # If attacks were left out of the report, `missing` says why.
        lines.append(f"{name} was not attacked (erase-sd attack --run {data.run.folder}).")
    return lines


def _attack_line(row: AttackRecord) -> list[str]:
    return [
        f"{row.concept}, attack: {label_of(row)}", str(row.attacked.n), _percent(row.original),
        _percent(row.attacked),
    ]  # fmt: skip


def _added_lines(data: ReportData, concept: str) -> list[list[str]]:
    lines = []
    for kind, words in _ADDED.items():
        images = {
            variant: [
                image
                for image in data.images
                if (image.variant, image.pair.kind, image.pair.set) == (variant, kind, "forget")
                and concept in (image.pair.concept, *image.pair.mentions)
            ]
            for variant in SHOWN_VARIANTS
        }
        if images["erased"]:
            counts = [_added(data, concept, own) for own in images.values()]
            label = f"objects that the prompt does not name, per 100 images, {words}"
            lines.append([label, str(len(images["erased"])), *counts])
    return lines


def _added(data: ReportData, concept: str, images: Sequence[ImageRecord]) -> str:
    """Detected classes other than the concept's that the prompts do not name, per 100 images."""
    added = 0
    for image in images:
        record = data.detections.get((image.file, image.sha256))
        if record is None:
            return "not scored"
        allowed = {*named_classes(image.prompt, record.names), data.detector_class(concept)}
        shown = {d.name for d in record.detections if d.probability >= data.threshold}
        added += len(shown - allowed)
    return f"{100 * added / max(1, len(images)):.0f}"
