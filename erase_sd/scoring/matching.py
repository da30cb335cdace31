"""Which classes each prompt should show, and how probable each is in the images of every variant."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..data.coco import named_classes
from ..data.concept import Concept
from ..data.pair import CaptionPair, PromptKind
from ..detection.detector import check_class
from ..errors import RunError
from ..run.measurements import Detection, RateGroup
from ..run.records import ImageRecord, Variant


@dataclass(frozen=True)
class Match:
    """One class that a prompt should show, in the images of one seed.

    The values are the probability of the best detection of the class, 0 if there is none.
    """

    prompt: str
    group: RateGroup
    class_name: str
    original: float
    erased: float
    reference: float | None = None
    """None if there is no reference image, or its text does not name the class."""
    kind: PromptKind = "plain"


def match_images(
    images: Iterable[ImageRecord],
    detections: Mapping[str, Sequence[Detection]],
    concept: str,
    classes: Mapping[str, str],
    names: Sequence[str],
    concepts: Sequence[Concept],
) -> list[Match]:
    """Matches for one erased concept; each class that a prompt names counts once per seed.

    `detections` maps the images' files to what they show, `classes` every concept of the run to its
    class of the detector, `names` are all classes, `concepts` all that the run erases: the classes
    that they or their synonyms name are not retained. Prompts of another concept's kind files, and plain
    prompts that mention other concepts only, count for those concepts instead. Raises SettingError if
    the concept's class is not one of the detector's, RunError if a variant's image is missing.
    """
    check_class(classes[concept], names)
    erased = {*classes.values(), *_mentioning(tuple(names), tuple(concepts))}
    seeds: dict[tuple[str, str, int], dict[Variant, ImageRecord]] = {}
    for image in images:
        seeds.setdefault(image.key, {})[image.variant] = image
    return [
        match
        for variants in seeds.values()
        for match in _matches(
            variants, detections, (concept, classes[concept]), erased, tuple(names)
        )
    ]


@functools.lru_cache
def _mentioning(names: tuple[str, ...], concepts: tuple[Concept, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if any(concept.in_text(name) for concept in concepts))


def _matches(
    variants: Mapping[Variant, ImageRecord],
    detections: Mapping[str, Sequence[Detection]],
    concept_and_class: tuple[str, str],
    erased: Collection[str],
    names: tuple[str, ...],
) -> list[Match]:
    _check_variants(variants)
    concept, target = concept_and_class
    pair = variants["original"].pair
    if not _concerns(pair, concept):
        return []
    shown = pair.set == "forget"
    named = [name for name in _named(pair.caption, names) if name not in erased]
    rest: RateGroup = "retained_same" if shown else "retained_other"
    groups: list[tuple[RateGroup, str]] = [("target", target)] if shown else []
    groups += [(rest, name) for name in named]
    comparable: set[str] = set()
    if concept in pair.mentions and "reference" in variants:
        comparable = {target, *_named(variants["reference"].text, names)}
    best = {variant: _best(detections[image.file]) for variant, image in variants.items()}
    return [
        Match(
            prompt=pair.caption,
            group=group,
            class_name=name,
            original=best["original"].get(name, 0.0),
            erased=best["erased"].get(name, 0.0),
            reference=best["reference"].get(name, 0.0) if name in comparable else None,
            kind=pair.kind,
        )
        for group, name in groups
    ]


def _check_variants(variants: Mapping[Variant, ImageRecord]) -> None:
    required: tuple[Variant, ...] = ("original", "erased")
    for variant in required:
        if variant not in variants:
            image = next(iter(variants.values()))
            raise RunError(
                f"prompt {image.prompt!r}, seed {image.seed}: no {variant} image; generate again"
            )


def _concerns(pair: CaptionPair, concept: str) -> bool:
    """Whether a prompt counts for the concept rather than for another one of the run."""
    if pair.kind != "plain":
        return pair.concept == concept
    return concept in pair.mentions or not pair.mentions


@functools.lru_cache(maxsize=1 << 16)
def _named(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(named_classes(text, names))


def _best(detections: Iterable[Detection]) -> dict[str, float]:
    """Probability of the best detection of each class."""
    best: dict[str, float] = {}
    for detection in detections:
        best[detection.name] = max(best.get(detection.name, 0.0), detection.probability)
    return best
