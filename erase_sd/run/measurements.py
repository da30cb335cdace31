"""Typed records of what was measured in a run: detections, detection rates, CLIP-side measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from ..data.pair import CONCEPT_SETS, ConceptSet, PromptKind
from .records import Variant

RateGroup = Literal["target", "retained_same", "retained_other"]
"""The concept itself; other classes that the same prompts name; classes that other prompts name."""
RATE_GROUPS: tuple[RateGroup, ...] = get_args(RateGroup)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One detected object."""

    name: str
    """Class of the detector."""
    probability: float
    box: tuple[float, float, float, float]
    """xyxy, pixels of the image."""

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Self:
        """From its fields as JSON, which has no tuples."""
        return cls(name=row["name"], probability=row["probability"], box=tuple(row["box"]))


@dataclass(frozen=True, kw_only=True)
class DetectorRecord:
    """The detector that detections and rates rest on."""

    file: str
    sha256: str
    kind: str
    """Such as "yolov5n anchor-based", the original's, or "yolov5n anchor-free", ultralytics' own."""
    size: int
    """Side of the square that each image is fitted into, pixels."""
    iou: float
    """Threshold of non-maximum suppression."""
    min_probability: float
    max_detections: int
    text_encoder_sha256: str | None = None
    """Hash of the text encoder that wrote an open vocabulary; None without one."""

    def __str__(self) -> str:
        text = self.text_encoder_sha256
        encoder = f", text encoder {text[:12]}" if text else ""
        return (
            f"{self.file} ({self.kind}, sha256 {self.sha256[:12]}{encoder}) at {self.size} px, "
            f"IoU {self.iou}"
        )


@dataclass(frozen=True, kw_only=True)
class DetectionRecord:
    """A row of `detections.jsonl`: everything detected in one image."""

    file: str
    sha256: str
    """Hash of the image that the detector saw."""
    detections: tuple[Detection, ...]
    names: tuple[str, ...]
    """All classes of the detector."""
    detector: DetectorRecord


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A detection rate with its 95 % Wilson interval."""

    value: float
    n: int
    detected: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.detected <= self.n or self.n < 1:
            raise ValueError(f"{self.detected} of {self.n} images is not a rate")
        if not math.isclose(self.value, self.detected / self.n, abs_tol=1e-6):
            raise ValueError(f"{self.detected} of {self.n} images is not a rate of {self.value:g}")


@dataclass(frozen=True, kw_only=True)
class Change:
    """Erased rate minus another, and the p-value of McNemar's exact test on the same seeds."""

    difference: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class RateComparison:
    """Detection rates of one group of prompts: before, after, and on the concept-removed prompts."""

    run: str
    concept: str
    group: RateGroup
    kind: PromptKind
    class_name: str | None
    """The class if the rates are of a single one, None if they are of all in the group."""
    threshold: float
    original: Rate
    erased: Rate
    change: Change
    """Erased minus original."""
    reference: Rate | None = None
    """On the prompts that have a reference image naming the same class."""
    reference_change: Change | None = None
    """Erased minus reference, on those prompts."""


@dataclass(frozen=True, kw_only=True)
class ScoresRecord:
    """`scores.json`. Rates at the default threshold, by class, and at every threshold."""

    threshold: float
    detectors: tuple[DetectorRecord, ...]
    """One per run; several runs may have been scored by different ones."""
    rates: tuple[RateComparison, ...]
    by_class: tuple[RateComparison, ...]
    sweep: tuple[RateComparison, ...]
    unscored: tuple[str, ...] = ()
    """Why runs are missing from a table of several, one line per run."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One CLIP-side measure of one variant on one set, with its 95 % interval."""

    run: str
    concept: str
    measure: str
    set: ConceptSet
    variant: Variant
    value: float
    """A share (0-1), or a drift (0-2)."""
    n: int
    """Queries of the measure: captions, images or classes."""
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """`evaluation.json`."""

    about: dict[str, Any]
    """Models, data and templates that the measurements rest on."""
    measurements: tuple[Measurement, ...]

    def __post_init__(self) -> None:
        data = self.about.get("data")
        if not isinstance(data, dict) or not {"kind", "folder", *CONCEPT_SETS} <= data.keys():
            raise ValueError("about.data needs kind, folder, and the images of each set")


@dataclass(frozen=True, kw_only=True)
class AttackImage:
    """One image that an attack has generated."""

    file: str
    """Path within the run folder."""
    sha256: str
    text: str
    """The prompt; `<*>` stands for a free embedding."""
    seed: int
    probability: float
    """Probability of the best detection of the concept, 0 if there is none."""


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """One row of `attacks.json`: one way to ask an erased model for its concept."""

    attack: str
    """Name of the attack; `none` for the captions that name the concept."""
    concept: str
    row: str
    """What sets it apart from the attack's other rows, such as "2 embeddings"."""
    control: bool
    """Whether the row is a yardstick for the others rather than an attack."""
    access: str
    """What the attack reads: "black box", "original" or "white box"."""
    key: str
    """Hash of all that shapes the attack's rows: models, settings, captions, seeds, detector."""
    attacked: Rate
    no_attack: Rate
    """The erased model on the captions that name the concept, with the same seeds."""
    original: Rate
    """The original model on them."""
    same_input: Rate | None
    """The original model on the attack's own input, with the first of the same seeds; None for free
    embeddings, which are made for the erased model."""
    found: tuple[str, ...]
    """Words or prompts that the attack has found."""
    images: tuple[AttackImage, ...]
    original_images: tuple[AttackImage, ...]
    """Images that the original generates from the same input."""
    seconds: float
    """The attack with all its rows, images included."""
    settings: dict[str, Any]
    """The attack's budgets, what its images were generated with, and the detector's class and text encoder
    that judged them; see `attacks.settings.LATER_SETTINGS`."""


@dataclass(frozen=True, kw_only=True)
class AttacksRecord:
    """`attacks.json`."""

    threshold: float
    """Minimum probability of a detection that counts."""
    detector: str
    detector_sha256: str
    erased_sha256: dict[str, str] = field(default_factory=dict)
    """Hashes of the weights that were attacked, by encoder; empty if an earlier version attacked them."""
    rows: tuple[AttackRecord, ...]
