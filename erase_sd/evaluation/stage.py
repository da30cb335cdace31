"""The evaluation of a run: CLIP-side measures of the original and the erased model on both sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .. import runtime
from ..data.cifar100 import find_cifar100, holds_test
from ..data.classes import TEMPLATES
from ..data.pair import CONCEPT_SETS, ConceptSet
from ..errors import SettingError
from ..files import write_csv, write_json
from ..models.blip import is_blip, load_blip
from ..models.erased import check_base, erased_clip, module_folder
from ..models.presets import Models, PairSource
from ..models.quiet import quiet_libraries
from ..models.source import fingerprint
from ..models.text_encoder import check_fit
from ..models.towers import encoders_to_unlearn, load_towers
from ..run import Run
from ..run.measurements import EvaluationRecord, Measurement
from ..run.records import Variant
from ..sharing import together, writes
from .clip_measures import MEASURES, measure
from .embedders import Embedder
from .galleries import Gallery, held_out_gallery, open_gallery
from .measures import Estimates

EVALUATION_HEADINGS = ("measure", "set", "n", "original", "erased")


def evaluate(
    run: Run,
    models: Models,
    images: Path | None = None,
    templates: Sequence[str] = TEMPLATES,
    progress: runtime.Progress | None = None,
) -> EvaluationRecord:
    """Measures CLIP with the original and with the erased text encoder; writes `evaluation.json` and
    `evaluation.csv`.

    `images` is a folder to measure on instead of the run's held-out pairs; of the folder that the run
    was unlearned with, its held-out images are measured. If the CLIP of `models` is a BLIP other than
    the run's own, it is measured alone and nothing is written. A launcher's processes share the images
    and captions. Raises RunError before unlearning is done.
    """
    check_templates(templates)
    quiet_libraries()
    run.unlearned()
    alone = _is_foreign_blip(run, models)
    # Locked from the first, so that the weights that are measured are those that the run has at the end.
    with together(), nullcontext() if alone else run.lock():
        return _evaluate(run, models, images, templates, progress)


def _evaluate(
    run: Run,
    models: Models,
    images: Path | None,
    templates: Sequence[str],
    progress: runtime.Progress | None,
) -> EvaluationRecord:
    concepts = run.unlearned().concepts
    variants, about = _open(run, models)
    if images and _is_same(images, models.data):
        runtime.log.info("%s: the run's own data; its held-out images are measured", images)
        images = None
    gallery = open_gallery(images, concepts) if images else held_out_gallery(run, models)
    estimates = measure(variants, gallery, concepts, templates, progress)
    about |= {"data": _described(gallery), "templates": list(templates)}
    about["versions"] = runtime.versions()
    record = EvaluationRecord(about=about, measurements=_measurements(run, estimates))
    if "erased" in variants and writes():
        _write(run.folder, record)
    return record


def check_templates(templates: Sequence[str]) -> None:
    """SettingError if a template does not have exactly one `{}` for the class name."""
    for template in templates:
        if template.count("{}") != 1:
            raise SettingError(
                "needs {} exactly once, in place of the class name",
                field="templates",
                value=repr(template),
            )


def _is_same(images: Path, data: PairSource | None) -> bool:
    """Whether both are one folder, or copies of CIFAR-100: a run that was unlearned with one has trained
    on images of its test split, whichever copy or version of it is named later."""
    if not isinstance(data, Path):
        return False
    mine, theirs = find_cifar100(images), find_cifar100(data)
    if mine and theirs and holds_test(theirs):
        return True
    return (mine or images).resolve() == (theirs or data).resolve()


def _is_foreign_blip(run: Run, models: Models) -> bool:
    """Whether the CLIP of `models` is a BLIP that the run did not erase."""
    folder, known = models.clip_folder(0), run.unlearned().origin.clip
    return is_blip(folder) and fingerprint(folder, known) not in known


def _open(run: Run, models: Models) -> tuple[dict[Variant, Embedder], dict[str, Any]]:
    """The original and the erased model on the device, and what they are; another BLIP alone."""
    folder = models.clip_folder(0)
    about: dict[str, Any] = {"clip": str(models.clips[0])}
    if _is_foreign_blip(run, models):
        blip = load_blip(folder)
        blip.model.to(runtime.device())
        runtime.log.info(
            "%s: a BLIP that the run did not erase; only the original is measured", folder
        )
        return {"original": Embedder(blip)}, about | {"clip_digest": blip.digest}
    erasure = check_base(run, models)
    encoder = encoders_to_unlearn(models)[0]
    if models.model is not None:
        changed = encoder.name in erasure.weights_sha256
        check_fit(folder, module_folder(run.erased, encoder.name) if changed else encoder.folder)
    clip = load_towers(folder, encoder)
    clip.model.to(runtime.device())
    erased = erased_clip(run.erased, encoder.name, clip)
    about |= {
        "clip_digest": fingerprint(folder, run.unlearned().origin.clip),  # as the run records it
        "encoder": encoder.name,
        "erased_sha256": erasure.weights_sha256,
        "image_tower_erased": clip.model.vision_model is not erased.model.vision_model,
    }
    return {"original": Embedder(clip), "erased": Embedder(erased)}, about


def _measurements(run: Run, estimates: dict[Variant, Estimates]) -> tuple[Measurement, ...]:
    """The estimates as records, in the order of MEASURES, concept sets and variants."""
    concept = "+".join(concept.name for concept in run.unlearned().concepts)
    return tuple(
        Measurement(
            run=run.name,
            concept=concept,
            measure=name,
            set=concept_set,
            variant=variant,
            **asdict(of_variant[name, concept_set]),
        )
        for name in MEASURES
        for concept_set in CONCEPT_SETS
        for variant, of_variant in estimates.items()
        if (name, concept_set) in of_variant
    )


def _described(gallery: Gallery) -> dict[str, Any]:
    """The data that the measurements rest on, as plain JSON."""
    counts = {
        concept_set: sum(image.set == concept_set for image in gallery.images)
        for concept_set in CONCEPT_SETS
    }
    source = {"kind": gallery.kind, "folder": str(gallery.folder), "digest": gallery.digest}
    return source | gallery.details | counts


def _write(folder: Path, record: EvaluationRecord) -> None:
    columns = [field.name for field in fields(Measurement)]
    write_csv(folder / "evaluation.csv", columns, map(asdict, record.measurements))
    write_json(folder / "evaluation.json", asdict(record))  # last: with it the evaluation is done


def evaluation_lines(record: EvaluationRecord) -> list[list[str]]:
    """A line for each measure and set, under EVALUATION_HEADINGS: shares in percent, drifts as they
    are, which only the erased model has."""
    lines: dict[tuple[str, ConceptSet], dict[Variant, Measurement]] = {}
    for row in record.measurements:
        lines.setdefault((row.measure, row.set), {})[row.variant] = row
    return [
        [
            _label(name),
            concept_set,
            str(max(row.n for row in by_variant.values())),
            _interval(by_variant.get("original")),
            _interval(by_variant.get("erased")),
        ]
        for (name, concept_set), by_variant in lines.items()
    ]


def _label(measure: str) -> str:
    """`zero-shot prediction`, `image retrieval R@1`, `drift, subject`."""
    named = measure.replace("zero_shot", "zero-shot").replace("drift_", "drift, ")
    return re.sub(r"_r(\d+)$", r" R@\1", named).replace("_", " ")


def evaluation_note(record: EvaluationRecord) -> str:
    """How to read the lines, and which images they rest on."""
    data = record.about["data"]
    return (
        "Prediction and retrieval in per cent. Drift: mean cosine distance (0-2) between the hidden "
        "states before and after, by kind of token; subject: the concept's name. Brackets hold the "
        "95 % interval, which treats the queries of a set as independent. "
        f"{data['forget']} forget and {data['retain']} retain images: {data['kind']}, "
        f"{data['folder']}."
    )


def _interval(row: Measurement | None) -> str:
    """`45.0 [38.1, 52.0]` for a share, `0.450 [0.381, 0.520]` for a drift, nothing for None."""
    if row is None:
        return ""
    scale, digits = (1, 3) if row.measure.startswith("drift") else (100, 1)
    value = f"{scale * row.value:.{digits}f}"
    if row.low is None or row.high is None:
        return value
    return f"{value} [{scale * row.low:.{digits}f}, {scale * row.high:.{digits}f}]"
