"""The target of an attack: a run's pipeline, both text encoders, captions to attack, the detector."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.coco import COCO, named_classes
from ..data.concept import Concept, Span
from ..data.dataset import Dataset
from ..data.images import ImageSource, as_files
from ..data.split import ConceptSets, hash_order
from ..detection.detector import detect
from ..errors import DataError, ModelError
from ..models import erased
from ..models.denoiser import Denoiser
from ..models.features import readable
from ..models.pipeline import embed, encoders_of, open_pipeline, tokenizer_of
from ..models.pipeline_kinds import kind_of
from ..models.presets import Models
from ..models.sampling import default_batch, generate_embedded
from ..models.unet import UNET, recompute_if_large
from ..run import Run
from ..scoring.rates import THRESHOLD

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

    from ..data.pair import Split

Embeds = Mapping[str, Tensor]
"""What the U-Net reads of n prompts, named as the pipeline's arguments."""
SPARE_TOKENS = 8
"""Tokens of the context length that captions under attack leave free."""


@dataclass(frozen=True)
class AttackedCaption:
    """A caption that names the concept, and the photograph that it describes."""

    text: str
    span: Span
    """Where it names the concept, in characters."""
    image: ImageSource

    @property
    def name(self) -> str:
        """The mention itself."""
        return self.text[slice(*self.span)]

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and after the mention."""
        return self.text[: self.span[0]], self.text[self.span[1] :]

    def with_phrase(self, phrase: str) -> str:
        """The caption with another phrase in the mention's place."""
        before, after = self.around
        return before + phrase + after


@dataclass(frozen=True)
class Target:
    """An erased concept under attack. An attack returns probes for its `n` images."""

    pipe: DiffusionPipeline
    original: Mapping[str, Any]
    """The original's text encoders by name."""
    erased: Mapping[str, Any]
    """The erased model's text encoders by name; those that did not change are the original's."""
    concept: Concept
    detector: Path
    detector_class: str
    captions: tuple[AttackedCaption, ...]
    """Captions used as prompts, one per image to generate; repeated if there are too few."""
    training: tuple[AttackedCaption, ...]
    """Captions of the training split, for attacks to learn from, one per photograph."""
    seed: int
    """Seed of the first image, and of the attacks' own random numbers."""
    steps: int
    """Denoising steps."""
    guidance: float
    split: Split = "held-out"
    """Split of the captions used as prompts."""
    unet: Any = None
    """The erased U-Net; None if the erasure left the pipeline's as it was."""
    detector_text: Path | None = None
    """Text encoder of an open-vocabulary detector."""

    @property
    def n(self) -> int:
        """Images of each probe."""
        return len(self.captions)

    @property
    def seeds(self) -> list[int]:
        """Seed of each image."""
        return [self.seed + i for i in range(self.n)]

    @property
    def tokenizer(self) -> Any:
        """The first encoder's tokenizer; the second one of SDXL has the same vocabulary."""
        return tokenizer_of(self.pipe, "text_encoder")

    @property
    def denoiser(self) -> Denoiser:
        """The erased model's U-Net, whose predictions and loss attacks optimize."""
        return Denoiser(self.pipe, self.unet or self.pipe.unet)

    @property
    def original_denoiser(self) -> Denoiser:
        """The original's U-Net."""
        return Denoiser(self.pipe, self.pipe.unet)

    def denoising_loss(self, latents: Tensor, embeds: Embeds, generator: torch.Generator) -> Tensor:
        """Squared error of the erased U-Net's prediction on noisy latents (n, channels, h, w) under n
        prompts, mean over all."""
        noisy, answer = self.denoiser.add_noise(latents, generator)
        return (self.denoiser.predict(noisy, embeds) - answer).square().mean()

    def generator(self) -> torch.Generator:
        """Random numbers on the CPU, the same for every attack."""
        return torch.Generator().manual_seed(self.seed)

    def empty(self, encoders: Mapping[str, Any]) -> dict[str, Tensor]:
        """Encoding of the empty prompt."""
        with torch.no_grad():
            return embed(self.pipe, [""], encoders)

    def images(
        self,
        embeds: Embeds,
        empty: Embeds,
        seeds: Sequence[int],
        steps: int | None = None,
        *,
        original: bool = False,
    ) -> Iterator[Image]:
        """Images of n prompts, in batches, by the erased U-Net or the original's."""
        size, own = default_batch(self.pipe), self.pipe.unet
        for i in range(0, len(seeds), size):
            rows = {name: tensor[i : i + size] for name, tensor in embeds.items()}
            self.pipe.unet = own if original else self.unet or own
            try:
                images = generate_embedded(
                    self.pipe, rows, empty, seeds[i : i + size], steps or self.steps, self.guidance
                )
            finally:
                self.pipe.unet = own
            yield from images

    def probabilities(self, files: Sequence[Path]) -> list[float]:
        """Probability of the best detection of the concept in each image file, 0 if there is none."""
        answer = detect(
            self.detector, files, [self.detector_class], text_encoder=self.detector_text
        )
        return [
            max((d.probability for d in found if d.name == self.detector_class), default=0.0)
            for found in answer.detections
        ]

    def shown(self, images: Iterable[Image]) -> list[float]:
        """`probabilities` of images that are not written to the run."""
        with as_files(images) as files:
            return self.probabilities(files)


def is_shown(probability: float) -> bool:
    """Whether a detection of that probability counts."""
    return probability >= THRESHOLD


def check_unet(models: Models) -> None:
    """Raises ModelError for a pipeline without U-Net, which no attack can be run on."""
    if not (models.folder / UNET).is_dir():
        rule = f"is a {kind_of(models.folder)}; attacks need a U-Net"
        raise ModelError(rule, field="model", value=models.model)


def open_models(run: Run, models: Models) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """The original's pipeline, and the modules that the run erased; frozen, float32, on the device.

    Raises RunError unless the run was unlearned from `models`, and ModelError for one without U-Net.
    """
    check_unet(models)
    erased.check_base(run, models)
    pipe = open_pipeline(models.folder, "fp32", models.sampler)
    modules = erased.load_all(run.folder, pipe.device)
    for module in (pipe.unet, pipe.vae, *encoders_of(pipe).values(), *modules.values()):
        module.requires_grad_(False)
    for unet in (pipe.unet, modules.get(UNET)):
        if unet is not None:
            recompute_if_large(unet)
    return pipe, modules


def attacked_captions(
    pipe: DiffusionPipeline, data: Dataset, sets: ConceptSets, concept: Concept, split: Split
) -> tuple[AttackedCaption, ...]:
    """The first caption of each readable image that names the concept once and leaves SPARE_TOKENS, in
    the order of a hash of the images' names. Raises DataError if there is none.

    A class of COCO has to be what the words mean: "an apple laptop" names a laptop.
    """

    def shows(text: str) -> bool:
        return concept.name not in COCO or concept.name in named_classes(text, COCO)

    tokenizer = tokenizer_of(pipe, "text_encoder")
    limit = int(tokenizer.model_max_length) - SPARE_TOKENS
    chosen = []
    for item in hash_order(sets.images("forget", split)):
        for text in item.captions:
            spans = concept.spans(text) if shows(text) else []
            fits = len(spans) == 1 and len(tokenizer(text)["input_ids"]) <= limit
            if fits and readable(data, [item.image]):
                chosen.append(AttackedCaption(text, spans[0], data.path_of(item.image)))
                break
    if not chosen:
        rule = f"no {split} caption names {concept.name} once within the context length"
        raise DataError(rule, field="data", value=data.folder)
    return tuple(chosen)


def cycled(captions: Sequence[AttackedCaption], n: int) -> tuple[AttackedCaption, ...]:
    """`n` captions, from the first again after the last."""
    return tuple(itertools.islice(itertools.cycle(captions), n))


def copy_of(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of text encoders, to change."""
    return {name: copy.deepcopy(encoder) for name, encoder in encoders.items()}
