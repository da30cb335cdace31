"""Typed records of a run folder: `run.json`, training log, erasure and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.concept import Concept
from ..data.pair import CaptionPair
from ..runtime import Precision

Variant = Literal["original", "erased", "reference"]
"""The model that generated an image. `reference` is the original on the concept-removed prompt."""
StageName = Literal["unlearn", "generate", "score"]
Status = Literal["missing", "running", "done"]
Stopped = Literal["steps", "thresholds", "schedule", "solved", "diverged"]
"""Why an unlearning ended."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage's entry in `run.json`."""

    status: Literal["running", "done"]
    settings: dict[str, Any]
    seconds: float | None = None
    peak_memory_mb: int | None = None


def _check_types(values: Mapping[str, Any], **types: type | tuple[type, ...]) -> None:
    """ValueError for a value that is there, is not None, and is not of its type."""
    for name, kind in types.items():
        value = values.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{name} cannot be {value!r:.60}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """SHA-256 hashes of what an unlearning starts from."""

    model: str
    clip: tuple[str, ...]
    data: str | None = None
    """Hash of the captions; None before the model has generated its own."""
    images: str | None = None
    """Hash of the image files."""
    missing_images: int = 0


@dataclass(frozen=True, kw_only=True)
class EncoderResult:
    """How the unlearning of one text encoder, or of the U-Net, ended."""

    steps: int
    stopped: Stopped
    resumed_at: int
    """Step of the checkpoint that the run resumed from; 0 if it was never interrupted."""
    batch_sizes: tuple[int, int]
    """Forget and retain captions per step, after any out-of-memory halving."""
    dtype: Precision | None = None
    """Precision of the passes through the model; None in records of earlier versions."""
    held_out: dict[str, float]
    """`unlearning.metrics` on the held-out captions; of a U-Net, `unlearning.unet_metrics`."""

    @property
    def residual(self) -> float:
        """Residual concept similarity on the held-out captions; 1, as if nothing was erased, if unknown."""
        return self.held_out.get("residual_concept_similarity", 1.0)


@dataclass(frozen=True, kw_only=True)
class UnlearnRecord(StageRecord):
    """The unlearn stage's entry."""

    concepts: tuple[Concept, ...]
    origin: Origin
    encoders: dict[str, EncoderResult] = field(default_factory=dict)
    """By the module's name in the pipeline, `text_encoder` first; a U-Net's is `unet`."""
    unreadable_images: tuple[str, ...] = ()
    """Images that were left out because they cannot be read."""

    def __post_init__(self) -> None:
        _check_types(self.settings, forget_threshold=(int, float), retain_floor=(int, float))


@dataclass(frozen=True, kw_only=True)
class GenerateRecord(StageRecord):
    """The generate stage's entry."""

    batch: int | None = None
    """Images per batch, after any out-of-memory halving."""

    def __post_init__(self) -> None:
        _check_types(self.settings, steps=int, guidance=(int, float), dtype=str, sampler=str)


@dataclass(frozen=True, kw_only=True)
class ScoreRecord(StageRecord):
    """The score stage's entry."""

    def __post_init__(self) -> None:
        _check_types(self.settings, classes=dict, detector_sha256=str)
        _check_types(self.classes, **dict.fromkeys(self.classes, str))

    @property
    def classes(self) -> dict[str, str]:
        """The detector's class of each concept."""
        return self.settings.get("classes") or {}


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of a run, each None until it has begun."""

    unlearn: UnlearnRecord | None = None
    generate: GenerateRecord | None = None
    score: ScoreRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Total:
    """Cost of `erase-sd run` as a whole."""

    seconds: float
    peak_memory_mb: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`run.json`."""

    format: int
    stages: Stages
    models: dict[str, Any] = field(default_factory=dict)
    """Arguments of `models.presets.resolve` that the run was unlearned with."""
    versions: dict[str, str] = field(default_factory=dict)
    total: Total | None = None


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """A row of `train.jsonl`: one validation step, or the one solution of a closed-form method."""

    step: int
    terms: dict[str, float]
    """Weighted terms of the last batch's loss."""
    residual_concept_similarity: float
    retained_fidelity: float
    schedule_stage: int | None = None
    """For staged methods: the stage, and the method's own measure of the concept (0-1)."""
    schedule_residual: float | None = None
    rolled_back: bool = False
    seconds_per_step: float | None = None
    peak_memory_mb: int | None = None


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that an erasure was made from."""

    model: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ErasureRecord:
    """`erased/erase.json`: how the erased text encoders, or the erased U-Net, came to be."""

    concepts: tuple[Concept, ...]
    settings: dict[str, Any]
    origin: Origin
    held_out: dict[str, float]
    base: Base
    weights_sha256: dict[str, str]
    """Hash of each module that the erasure changed, by its name in the pipeline: text encoders, `unet`."""
    mentions: dict[str, dict[str, int]] = field(default_factory=dict)
    """By concept: phrases that nobody listed and that were erased with it, and in how many training
    captions each was found."""
    image_tower_sha256: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """A row of `images.jsonl`: one generated image."""

    file: str
    """Path within the run folder."""
    variant: Variant
    pair: CaptionPair
    """The prompt, with its kind and what it mentions."""
    prompt_file: str
    """Name of the prompt file, without `.txt`."""
    text: str
    """What the image was generated from: the prompt, for the reference without the concept."""
    seed: int
    steps: int
    guidance: float
    size: int
    sampler: str | None
    """Sampler chosen by the user or the preset; None is the model's own scheduler."""
    dtype: str
    """Precision of the pipeline."""
    scheduler: str
    """The diffusers class that denoised it."""
    weights: str
    """Hash of the weights that the variant adds to the pipeline."""
    batch: int
    batch_key: str
    """Hash of everything that shapes the batch."""
    sha256: str

    @property
    def prompt(self) -> str:
        return self.pair.caption

    @property
    def key(self) -> tuple[str, str, int]:
        """What the variants of one image have in common: prompt file, prompt and seed."""
        return self.prompt_file, self.pair.caption, self.seed
