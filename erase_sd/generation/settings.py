"""Settings of the generate stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import runtime
from ..errors import SettingError, check_numbers
from ..models.choices import SAMPLERS, Sampler

if TYPE_CHECKING:
    from ..models.presets import Models

MOST = {"images_per_prompt": 10_000, "steps": 1000, "batch": 1000}
"""Upper bounds; the schedulers of Stable Diffusion have 1,000 time steps."""
MAX_SEED = 2**63 - 10**9  # leaves every image of a run a seed that torch accepts


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """What shapes the images. Every field is an option of `erase-sd generate`."""

    images_per_prompt: int = 1
    """Images of each prompt, each with its own seed."""
    steps: int | None = None
    """Denoising steps. None: the preset's (mini 10, others 50)."""
    sampler: Sampler | None = None
    """Sampler. None: the preset's (mini dpm++, others the model's own scheduler)."""
    guidance: float | None = None
    """Scale of classifier-free guidance. None: the preset's (mini 3.5, others 7.5)."""
    seed: int = 1000
    """Seed of the first image; image k of prompt p has seed + p * images_per_prompt + k."""
    batch: int | None = None
    """Images per batch, which changes pixels slightly. None: 25 up to 256 px, 8 at 512 px, 2 at 1024 px."""
    dtype: runtime.Precision = "auto"
    """Precision of the pipeline. auto: bf16 on CUDA and on CPUs with bfloat16 instructions, else fp32."""
    compiled: bool = False
    """Compile the denoiser's blocks with torch.compile, which changes pixels slightly; for hundreds of images
    on a GPU. A batch that is not full is filled up, so that all have one size."""

    def __post_init__(self) -> None:
        runtime.check_precision(self.dtype)
        check_ranges(self, MOST)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise SettingError(
                f"needs one of {', '.join(SAMPLERS)}", field="sampler", value=self.sampler
            )

    def with_defaults_of(self, models: Models) -> dict[str, Any]:
        """The settings, with those of `models` where they are None; only the batch may still be None.

        `compiled` is in them only if it is on: images from before it existed stay valid.
        """
        own = asdict(self)
        if not own["compiled"]:
            del own["compiled"]
        return own | {
            "steps": self.steps or models.steps,
            "sampler": self.sampler or models.sampler,
            "guidance": self.guidance or models.guidance,
            "dtype": runtime.precision(self.dtype),
        }


def check_ranges(settings: Any, most: Mapping[str, int]) -> None:
    """Raises SettingError unless guidance, seed and the settings of `most`, from 1 on, are numbers in
    range."""
    check_numbers(settings)
    for name, bound in most.items():
        value = getattr(settings, name)
        if value is not None and not 1 <= value <= bound:
            raise SettingError(f"needs 1 to {bound:,}, got {value}", field=name)
    if settings.guidance is not None and not 1 <= settings.guidance <= 100:
        raise SettingError(f"needs 1 to 100, got {settings.guidance}", field="guidance")
    if not 0 <= settings.seed < MAX_SEED:
        raise SettingError(f"needs 0 to {MAX_SEED - 1}, got {settings.seed}", field="seed")
