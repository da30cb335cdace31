"""What shapes an erasure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..data.coco import COMPOUNDS
from ..data.concept import Concept
from ..errors import SettingError
from ..methods import METHODS, Method

# Left None, a setting of these becomes the method's own.
OF_METHOD = ("rate", "steps", "forget_threshold", "retain_floor")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What shapes an erasure. What OF_METHOD names and is left None becomes the method's own."""

    concepts: tuple[Concept, ...]
    """What goes: names, synonyms, and the senses that stay."""
    method: str = "cliperase-anchored"
    """One of METHODS."""
    weights: dict[str, Any] = field(default_factory=dict)
    """The method's own fields, where they differ from its defaults."""
    towers: Literal["text", "both"] = "text"
    """Which towers train; Stable Diffusion reads the text tower alone."""
    rate: float | None = None
    """Adam's learning rate at its peak (betas 0.9, 0.98, as the paper), falling as a cosine."""
    steps: int | None = None
    """Most steps; the thresholds below can end it earlier."""
    forget_batch: int = 48
    """Forget captions a step (ours; the paper has 16 of both)."""
    retain_batch: int = 96
    """Retain captions a step (ours)."""
    forget_threshold: float | None = None
    """Ends once the concept's remaining share, on validation images, is at most this (0-1). The
    methods of other papers have none and run to their last step."""
    retain_floor: float | None = None
    """Kept share of the retain captions' states (0-1), on validation images; a step below it is
    rolled back and the rate halved. The methods of other papers have none."""
    validate_every: int = 20
    """Steps between two looks at the validation images (ours)."""
    patience: int = 100
    """Least steps before the threshold may end the run: what is drawn settles after what is said."""
    seed: int = 0
    """Of every batch, and of what a method draws at random; not of the split."""
    dtype: str = "auto"
    """Precision of the passes through the model: auto (bf16 on CUDA, else fp32), fp32 or bf16; the
    weights and Adam's state are fp32 throughout."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            near = ", ".join(get_close_matches(self.method, METHODS, n=2)) or "erase-sd methods"
            raise SettingError(
                f"--method {self.method}: unknown, near: {near}; needs one of {', '.join(METHODS)}"
            )
        for name in OF_METHOD:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(METHODS[self.method], name))
        if self.towers not in ("text", "both"):
            raise SettingError(f"--towers {self.towers}: needs text or both")
        if not self.concepts:
            raise SettingError("--concept: needs at least one word")
        for name in ("steps", "forget_batch", "validate_every"):
            if getattr(self, name) < 1:
                raise SettingError(
                    f"--{name.replace('_', '-')}: needs at least 1, got {getattr(self, name)}"
                )
        if self.retain_batch < 2:
            raise SettingError(f"--retain-batch: needs at least 2, got {self.retain_batch}")
        assert self.rate is not None
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise SettingError(f"--rate: needs a number above 0, got {self.rate}")
        for name in ("forget_threshold", "retain_floor"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise SettingError(
                    f"--{name.replace('_', '-')}: needs 0 to 1, got {getattr(self, name)}"
                )
        if self.dtype not in ("auto", "fp32", "bf16"):
            raise SettingError(f"--dtype {self.dtype}: needs auto, fp32 or bf16 in unlearning")
        self.build()

    def build(self) -> Method:
        """The method with its weights. Raises SettingError for a weight it does not have."""
        kind = METHODS[self.method]
        known, hints = kind.settings(), get_type_hints(kind)
        for name in self.weights:
            if name not in known:
                near = get_close_matches(name, known, n=1) or sorted(known)
                raise SettingError(
                    f"--weight {name}: {self.method} has none; near: {', '.join(near)}"
                )
        bounds = {f.name: f.metadata for f in fields(kind)}
        return kind(
            **{
                n: _value_of(n, value, known[n], hints[n], bounds[n])
                for n, value in self.weights.items()
            }
        )


def _value_of(name: str, value: Any, default: Any, hint: Any, bounds: Mapping[str, Any]) -> Any:
    """The value in its field's own type. Raises SettingError where it is of another or out of bounds."""
    allowed = get_args(hint) if get_origin(hint) is Literal else ()
    if allowed and value not in allowed:
        raise SettingError(f"--weight {name}: needs {' or '.join(allowed)}, got {value}")
    if isinstance(default, int | float):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise SettingError(f"--weight {name}: needs a finite number, got {value}")
        if isinstance(default, int) and value != int(value):
            raise SettingError(f"--weight {name}: needs a whole number, got {value}")
        if "least" in bounds and value < bounds["least"]:
            raise SettingError(f"--weight {name}: needs at least {bounds['least']}, got {value:g}")
        if "above" in bounds and value <= bounds["above"]:
            raise SettingError(f"--weight {name}: needs more than {bounds['above']}, got {value:g}")
        return type(default)(value)
    return tuple(str(value).split("|")) if isinstance(default, tuple) else str(value)


def concepts_from(
    names: Sequence[str], synonyms: Sequence[str] = (), keep_senses: Sequence[str] = ()
) -> tuple[Concept, ...]:
    """Concepts by name. Synonyms belong to the one concept there is; with several, a synonym is
    given as `concept=synonym`. Senses are kept for all, and with them the well-known phrases in
    which a concept's word is another thing ("hot dog"), unless one is its synonym.

    Raises SettingError for an empty word, a concept named twice, and a synonym of none.
    """
    if len(set(names)) < len(names):
        raise SettingError(f"--concept: named twice ({', '.join(names)})")
    given: dict[str, list[str]] = {name: [] for name in names}
    for text in synonyms:
        name, equals, word = text.partition("=")
        owner, word = (name, word) if equals else (names[0], text)
        if owner not in given or (len(names) > 1 and not equals):
            raise SettingError(f"--synonym {text}: needs concept=synonym, of {', '.join(names)}")
        given[owner].append(word)
    return tuple(
        Concept(name, tuple(words), _kept_with(name, words, keep_senses))
        for name, words in given.items()
    )


def _kept_with(name: str, synonyms: list[str], keep_senses: Sequence[str]) -> tuple[str, ...]:
    own = {word.lower() for word in synonyms}
    compounds = (c for c in COMPOUNDS.get(name.lower(), ()) if c not in own)
    return tuple(dict.fromkeys((*keep_senses, *compounds)))
