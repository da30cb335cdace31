"""Detection rates of a LoRA export at strengths from 0, the original, to beyond 1, the erased model.

`python -m erase_sd.scoring.strengths RUN` writes `strengths.json` and `strengths.png` beside the LoRA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from .. import plotting
from ..data.images import as_files
from ..detection.detector import detect, text_encoder_hash
from ..errors import EraseError, RunError
from ..files import write_bytes, write_json
from ..models.lora import read_factors, with_strength
from ..models.lora_export import DIFFUSERS_FILE
from ..models.pipeline import open_pipeline, swap
from ..models.presets import Models
from ..models.quiet import quiet_libraries
from ..models.recorded import models_of_run
from ..models.sampling import generate_batch
from ..models.text_encoder import load_text_encoder
from ..models.unet import UNET, load_unet
from ..reading import read_record
from ..run import Run, run_folder
from ..run.measurements import Detection, Rate, RateGroup
from ..run.records import ErasureRecord, ImageRecord
from .matching import match_images
from .rates import compare_rates

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure
    from PIL.Image import Image

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
GROUPS: dict[RateGroup, str] = {
    "target": "{}", "retained_same": "retained, prompts with {}",
    "retained_other": "retained, prompts without {}",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StrengthRate:
    """A detection rate with the LoRA at one strength, and of the erased model itself."""

    strength: float
    concept: str
    group: RateGroup
    lora: Rate
    erased: Rate


def strength_rates(
    run: Run, models: Models, lora: Path, strengths: Sequence[float]
) -> list[StrengthRate]:
    """Generates the run's prompts again with the LoRA at every strength: same batches, sampler, precision.

    `lora` is the file for diffusers in the run's export. Raises RunError if the run is not scored, was
    scored with another detector, or has been unlearned again since the export.
    """
    exported = read_record(lora.with_name("erase.json"), ErasureRecord, hint="export again")
    if exported.weights_sha256 != run.erasure().weights_sha256:
        raise RunError(f"{lora}: made from other weights than the run has; export again")
    classes, concepts = run.scored().classes, run.unlearned().concepts
    _check_detector(run, models)
    images = run.images()
    erased = [image for image in images if image.variant == "erased"]
    full = {record.file: record.detections for record in run.detections()}
    names = run.detections()[0].names
    factors = read_factors(lora)
    settings = run.generated().settings
    pipe = open_pipeline(models.folder, settings["dtype"], settings["sampler"])
    originals = {
        name: (load_unet if name == UNET else load_text_encoder)(models.folder / name)
        for name in factors
    }
    rates = []
    for strength in strengths:
        swap(pipe, {n: with_strength(n, m, factors[n], strength) for n, m in originals.items()})
        shown = full | _detections(pipe, erased, models, tuple(classes.values()))
        for concept in classes:
            lora_rates, full_rates = (
                compare_rates(
                    run.name, concept, match_images(images, d, concept, classes, names, concepts)
                )
                for d in (shown, full)
            )
            rates += [
                StrengthRate(
                    strength=strength,
                    concept=concept,
                    group=rate.group,
                    lora=rate.erased,
                    erased=whole.erased,
                )
                for rate, whole in zip(lora_rates, full_rates, strict=True)
                if rate.kind == "plain"
            ]
    return rates


def _check_detector(run: Run, models: Models) -> None:
    """RunError unless the run, whose rates the LoRA's are compared with, was scored with the detector."""
    own = run.detections()[0].detector
    text = text_encoder_hash(models.detector_text_path())
    if (own.sha256, own.text_encoder_sha256) != (models.detector_hash(), text):
        raise RunError(
            f"{run.folder}: scored with the detector {own.file} (sha256 {own.sha256[:12]}), not with "
            f"{models.detector_file().name}, or with another text encoder; name the same detector and "
            "text encoder"
        )


def _detections(
    pipe: DiffusionPipeline,
    images: Sequence[ImageRecord],
    models: Models,
    targets: Sequence[str],
) -> dict[str, Sequence[Detection]]:
    """What the images show if the pipeline generates them, by the files of `images`."""

    def pictures() -> Iterator[Image]:
        for _, group in groupby(images, key=lambda image: image.batch):
            batch = list(group)
            prompts, seeds = [image.text for image in batch], [image.seed for image in batch]
            yield from generate_batch(pipe, prompts, seeds, batch[0].steps, batch[0].guidance)

    with as_files(pictures()) as files:
        answer = detect(
            models.detector_file(), files, targets, text_encoder=models.detector_text_path()
        )
    return {image.file: d for image, d in zip(images, answer.detections, strict=True)}


def strengths_png(rates: Sequence[StrengthRate], title: str) -> bytes:
    """A curve per group with its 95 % intervals; dashed, the rate with the erased model."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        curves = sorted({(rate.concept, rate.group) for rate in rates}, key=lambda c: c[::-1])
        for number, (concept, group) in enumerate(curves):
            turn, place = divmod(number, len(plotting.COLOURS))
            colour, marker = plotting.COLOURS[place], "osD^v<>"[turn % 7]
            own = [rate for rate in rates if (rate.concept, rate.group) == (concept, group)]
            x, y = [r.strength for r in own], [100 * r.lora.value for r in own]
            low, high = [100 * r.lora.low for r in own], [100 * r.lora.high for r in own]
            axes.plot(x, y, marker=marker, color=colour, label=GROUPS[group].format(concept))
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.axhline(100 * own[0].erased.value, color=colour, linestyle="--", linewidth=0.8)
        axes.set(xlabel="strength of the LoRA", ylabel="detection rate, %", ylim=(-3, 103))
        axes.set_title(title, fontsize=10)
        axes.legend(loc="center right")

    return plotting.render_png(draw, (6.4, 4.0))


def main() -> None:
    """Writes the rates and their picture, and prints a line per rate; exit status 1 on an error."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.scoring.strengths")
    parser.add_argument("run", help="A scored run whose LoRA is exported: a name or a folder.")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=STRENGTHS, help="Strengths to measure."
    )
    parser.add_argument("--detector", help="The detector that the run was scored with.")
    parser.add_argument("--detector-text", help="Text encoder of an open-vocabulary detector.")
    options = parser.parse_args()
    run = Run(run_folder(options.run))
    try:
        folder = run.folder / "export" / "lora"
        file = folder / DIFFUSERS_FILE
        if not file.is_file():
            raise RunError(f"{folder}: no LoRA; export it first")
        quiet_libraries()
        models = models_of_run(run, detector=options.detector, detector_text=options.detector_text)
        rates = strength_rates(run, models, file, options.strengths)
    except EraseError as error:
        sys.exit(f"erase_sd.scoring.strengths: {error}")
    write_json(folder / "strengths.json", [asdict(rate) for rate in rates])
    write_bytes(folder / "strengths.png", strengths_png(rates, f"{run.name}: LoRA by strength"))
    for rate in rates:
        print(
            f"strength {rate.strength:g}, {GROUPS[rate.group].format(rate.concept)}: "
            f"{100 * rate.lora.value:.1f} % of {rate.lora.n}; the erased model "
            f"{100 * rate.erased.value:.1f} %"
        )


if __name__ == "__main__":
    main()
