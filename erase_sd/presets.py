"""A preset names four things: the diffusers model, its CLIP, the caption pairs, the detector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .errors import ModelError, SettingError
from .files import hash_file, hash_folder

PRESETS = ("mini",)


@dataclass(frozen=True)
class Models:
    """Where the four lie: a diffusers Stable Diffusion folder, a transformers CLIP folder, a
    Flickr30K folder, and a detector's `.safetensors`. `data` None: the miniature world's pairs."""

    model: Path
    clip: Path
    data: Path | None
    detector: Path

    def pairs(self) -> Path:
        """The Flickr30K folder; the miniature world's is written into the cache on first use."""
        from . import mini

        return self.data or mini.dataset()

    def fingerprint(self) -> str:
        """Hash of the weights and settings of the diffusers folder."""
        if not (self.model / "model_index.json").is_file():
            raise ModelError(f"--model {self.model}: no diffusers folder (no model_index.json)")
        return hash_folder(self.model, "*.safetensors", "*.json")

    def detector_hash(self) -> str:
        """SHA-256 of the detector's file."""
        if not self.detector.is_file():
            raise ModelError(f"--detector {self.detector}: no such file")
        return hash_file(self.detector)


def resolve(
    preset: str = "mini",
    model: Path | None = None,
    clip: Path | None = None,
    data: Path | None = None,
    detector: Path | None = None,
) -> Models:
    """The preset's four places, with those given in place of its own."""
    if preset not in PRESETS:
        raise SettingError(f"--preset {preset}: unknown; needs one of {', '.join(PRESETS)}")
    from . import mini

    own = Models(
        model=mini.WEIGHTS / "sd",
        clip=mini.WEIGHTS / "clip",
        data=None,
        detector=mini.WEIGHTS / "detector.safetensors",
    )
    given = {"model": model, "clip": clip, "data": data, "detector": detector}
    return replace(own, **{name: path for name, path in given.items() if path})
