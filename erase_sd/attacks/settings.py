"""Settings of the attack stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from ..data.pair import Split
from ..errors import SettingError
from ..generation.settings import MOST, check_ranges
from .registry import ATTACKS

MAX_IMAGES = 10_000  # per row
LATER_SETTINGS = ("sampler", "detector_class", "detector_text_sha256")
"""Settings that rows of earlier versions do not record."""


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """Which attacks to run, and what is generated to judge them."""

    attacks: tuple[str, ...] = ATTACKS
    """Attacks to run, in this order."""
    budgets: Mapping[str, Any] = field(default_factory=dict)
    """Budgets that differ from the attacks' defaults, as `attack.budget`."""
    images: int = 50
    """Images of each row, one per caption."""
    split: Split = "held-out"
    """Split of the captions used as prompts: held-out to report, validation to choose settings."""
    seed: int = 2000
    """Seed of the first image and of the attacks' own random numbers."""
    steps: int | None = None
    """Denoising steps. None: the preset's."""
    guidance: float | None = None
    """Scale of classifier-free guidance. None: the preset's."""

    def __post_init__(self) -> None:
        if not self.attacks:
            raise SettingError(f"needs one of {', '.join(ATTACKS)}", field="attacks")
        for attack in self.attacks:
            if attack not in ATTACKS:
                rule = f"needs one of {', '.join(ATTACKS)}"
                raise SettingError(rule, field="attacks", value=attack)
        if self.split not in get_args(Split):
            rule = f"needs one of {', '.join(get_args(Split))}"
            raise SettingError(rule, field="split", value=self.split)
        check_ranges(self, {"images": MAX_IMAGES, "steps": MOST["steps"]})


def is_recorded(wanted: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Whether a row's recorded settings include the `wanted` ones; what its version did not record
    counts as the same."""
    return all(
        name in recorded and recorded[name] == value
        for name, value in wanted.items()
        if name in recorded or name not in LATER_SETTINGS
    )
