"""Settings of an unlearning run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from .. import runtime
from ..data.coco import COMPOUNDS
from ..data.concept import Concept, slug
from ..errors import SettingError, check_numbers
from ..methods.registry import METHODS, MethodName
from ..models.choices import Towers

if TYPE_CHECKING:
    from ..methods.base import ClosedFormMethod, Method

METHOD_DEFAULTS = ("learning_rate", "steps", "forget_threshold", "retain_floor")
"""Settings that default to the method's own; methods in closed form have none of them."""

MAX_RESIDUAL = {"text_encoders": 0.5, "unet": 0.75}
"""Default of `max_residual` by what a method unlearns. On validation images of apples, the value for the
U-Net separates erasures with at most a quarter of the detections left (residuals up to 0.69) from those
with more than half left (0.81 and above)."""
RANGES = {
    "steps": (1, 10**6),
    "forget_batch": (1, 10**5),
    "retain_batch": (2, 10**5),
    "validate_every": (1, 10**6),
    "min_steps": (0, 10**6),
    "seed": (0, 10**12),
}
"""Minimum and maximum; a batch's seed is about a million times the run's, and must fit into 64 bits."""
MAX_LEARNING_RATE = 10.0
MAX_HYPERPARAMETER = 1_000_000

TrainingPrecision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class UnlearnSettings:
    """Settings of an unlearning run. Raises SettingError for a value outside its range."""

    concepts: tuple[Concept, ...]
    """Concepts to erase, with their synonyms and the senses to keep."""
    method: MethodName = "cliperase-anchored"
    """Unlearning method."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of the method that differ from its defaults."""
    towers: Towers = "text"
    """Towers of CLIP to train; Stable Diffusion uses the text tower only."""
    learning_rate: float | None = None
    """Peak learning rate of Adam (betas 0.9 and 0.98, as in CLIPErase), on a cosine schedule after 10
    warm-up steps; None is the method's."""
    steps: int | None = None
    """Maximum number of steps; None is the method's."""
    forget_batch: int = 48
    """Forget captions per step (CLIPErase: 16)."""
    retain_batch: int = 96
    """Retain captions per step (CLIPErase: 16)."""
    forget_threshold: float | None = None
    """Residual concept similarity on the validation images (0-1) at which training ends; None is the
    method's, and published methods have none: they train to the last step."""
    retain_floor: float | None = None
    """Retained fidelity on the validation images (0-1) below which training is rolled back to the last
    accepted validation step and the learning rate halved; None is the method's, and published methods
    have none."""
    validate_every: int = 20
    """Steps between two validations."""
    min_steps: int = 100
    """Minimum number of steps before the forget threshold can end training, because images keep
    changing after the similarity has settled."""
    max_residual: float | None = None
    """Residual concept similarity on the held-out images above which an unlearning counts as failed:
    it ends with an error and exit status 1, and its files are kept; None is 0.5 for text encoders, 0.75
    for a U-Net."""
    seed: int = 0
    """Random seed of the batches and of the method's own samples; the data split is the same for every
    seed."""
    mine_mentions: bool = True
    """Whether to erase also what else the captions of the forget images call the concept, found with
    CLIP (`unlearning.mentions`); only cliperase-anchored and cliperase-hardened do."""
    dtype: TrainingPrecision = "auto"
    """Precision of the passes through the model: auto (bf16 on CUDA and, for text encoders, on CPUs
    with bfloat16 instructions; else fp32), fp32 or bf16; weights and optimizer states are always fp32."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            near = get_close_matches(self.method, METHODS, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise SettingError(
                f"unknown; needs one of {', '.join(METHODS)}{hint}",
                field="method",
                value=self.method,
            )
        for name in METHOD_DEFAULTS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(METHODS[self.method], name, None))
        if self.max_residual is None:
            bound = MAX_RESIDUAL[METHODS[self.method].unlearns]
            object.__setattr__(self, "max_residual", bound)
        check_numbers(self)
        self._check_choices()
        self._check_ranges()
        if self.build().unlearns == "unet" and self.towers == "both":
            raise SettingError(
                f"{self.method} unlearns the U-Net and neither tower; needs text",
                field="towers", value=self.towers,
            )  # fmt: skip

    @property
    def precision(self) -> runtime.Precision:
        """`dtype`, with `auto` resolved for this machine and method."""
        on_cpu = runtime.device().type == "cpu"
        if self.dtype == "auto" and on_cpu and METHODS[self.method].unlearns == "unet":
            return "fp32"  # bf16 on a CPU has been tested with text encoders only
        return runtime.precision(self.dtype)

    def _check_choices(self) -> None:
        if not self.concepts:
            raise SettingError("needs at least one word", field="concept")
        choices = {"towers": get_args(Towers), "dtype": get_args(TrainingPrecision)}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise SettingError(
                    f"unlearning needs one of {', '.join(allowed)}", field=name, value=value
                )

    def _check_ranges(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise SettingError(f"needs {least:,} to {most:,}, got {value}", field=name)
        rate = self.learning_rate
        if rate is not None and not 0 < rate <= MAX_LEARNING_RATE:
            raise SettingError(
                f"needs a number above 0 and up to {MAX_LEARNING_RATE:g}, got {rate}",
                field="learning_rate",
            )
        if self.max_residual is not None and not self.max_residual >= 0:
            raise SettingError(f"needs at least 0, got {self.max_residual}", field="max_residual")
        for name in ("forget_threshold", "retain_floor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingError(f"needs a number from 0 to 1, got {value}", field=name)

    def build(self) -> Method | ClosedFormMethod:
        """The method with these hyperparameters."""
        method = METHODS[self.method]
        defaults, hints = method.hyperparameters(), get_type_hints(method)
        for name in self.hyperparameters:
            if name not in defaults:
                near = get_close_matches(name, defaults, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(defaults)}"
                raise SettingError(
                    f"{self.method} has no such hyperparameter; {hint}",
                    field="hyperparameters", value=name,
                )  # fmt: skip
        bounds = {f.name: f.metadata for f in fields(method)}
        return method(
            **{
                name: _converted(name, value, defaults[name], hints[name], bounds[name])
                for name, value in self.hyperparameters.items()
            }
        )


def _converted(name: str, value: Any, default: Any, hint: Any, bounds: Mapping[str, Any]) -> Any:
    """The value in the type of its field; SettingError if it has another type or is out of bounds."""

    def error(rule: str) -> SettingError:
        return SettingError(f"{rule}, got {value}", field="hyperparameters", value=name)

    allowed = get_args(hint) if get_origin(hint) is Literal else ()
    if allowed and value not in allowed:
        raise error(f"needs {' or '.join(allowed)}")
    if not isinstance(default, int | float):
        return tuple(str(value).split("|")) if isinstance(default, tuple) else str(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise error("needs a finite number")
    if abs(value) > MAX_HYPERPARAMETER:
        raise error(f"needs at most {MAX_HYPERPARAMETER:,}")
    if isinstance(default, int) and value != int(value):
        raise error("needs a whole number")
    if "minimum" in bounds and value < bounds["minimum"]:
        raise error(f"needs at least {bounds['minimum']}")
    if "greater_than" in bounds and value <= bounds["greater_than"]:
        raise error(f"needs a number above {bounds['greater_than']}")
    return type(default)(value)


def parse_concepts(
    names: Sequence[str], synonyms: Sequence[str] = (), keep_senses: Sequence[str] = ()
) -> tuple[Concept, ...]:
    """Concepts by name, with their synonyms and the senses to keep.

    With several concepts, a synonym is written `concept=synonym`. Every concept keeps all of
    `keep_senses`, and the well-known phrases in which its word means something else ("hot dog") unless
    they are its synonyms. Raises SettingError for an empty word, two concepts whose files would have the
    same name, or a synonym that belongs to none of the concepts.
    """
    if len(set(map(slug, names))) < len(names):  # they name files
        rule = f"each must be different, in more than case and punctuation, got {', '.join(names)}"
        raise SettingError(rule, field="concept")
    words: dict[str, list[str]] = {name: [] for name in names}
    for synonym in synonyms:
        name, equals, word = synonym.partition("=")
        concept, word = (name, word) if equals else (names[0], synonym)
        if concept not in words or (len(names) > 1 and not equals):
            raise SettingError(
                f"needs concept=synonym, with concept one of {', '.join(names)}",
                field="synonym", value=synonym,
            )  # fmt: skip
        words[concept].append(word)
    return tuple(
        Concept(name, tuple(own), _senses_kept(name, own, keep_senses))
        for name, own in words.items()
    )


def _senses_kept(name: str, synonyms: list[str], keep_senses: Sequence[str]) -> tuple[str, ...]:
    own = {word.lower() for word in synonyms}
    compounds = (c for c in COMPOUNDS.get(name.lower(), ()) if c not in own)
    return tuple(dict.fromkeys((*keep_senses, *compounds)))
