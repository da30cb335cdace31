"""The score stage: detections in a run's images, then detection rates as JSON, CSV and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..detection.detector import (
    CHUNK,
    IOU,
    MAX_DETECTIONS,
    MIN_PROBABILITY,
    DetectorAnswer,
    detect,
    text_encoder_hash,
)
from ..errors import RunError
from ..files import write_csv, write_json, write_records, write_text
from ..models.presets import Models
from ..run import RUNS, Run
from ..run.measurements import DetectionRecord, DetectorRecord, ScoresRecord
from ..run.records import ImageRecord
from ..runtime import Progress
from ..sharing import each, from_first, place, together, writes
from .classes import classes_of
from .matching import match_images
from .rates import THRESHOLD, THRESHOLDS, compare_rates
from .table import csv_columns, csv_row, markdown


def score(
    run: Run,
    models: Models,
    detector_class: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> ScoresRecord:
    """Detects objects in every image of the run; writes `detections.jsonl` and `scores.*`.

    `detector_class` names the detector's class of a concept, as `classes_of` reads it. Images that
    the same detector has already seen are not run through it again. A launcher's processes share the
    images. Raises RunError before generate is done or if an image has changed since, and SettingError
    if the detector lacks a class.
    """
    with together():
        return _score(run, models, detector_class, progress)


def _score(
    run: Run, models: Models, detector_class: str | Sequence[str], progress: Progress | None
) -> ScoresRecord:
    run.generated()
    images = run.images()
    _check_images(run, images)
    concepts = run.unlearned().concepts
    classes = classes_of(
        concepts, [detector_class] if isinstance(detector_class, str) else detector_class
    )
    settings = {
        "detector": models.detector_file().name,
        "detector_sha256": models.detector_hash(),
        "iou": IOU,
        "max_detections": MAX_DETECTIONS,
        "classes": classes,
    }
    with run.stage("score", settings):
        records = _detections(run, images, models, list(classes.values()), progress)
        scores = _scores(run.name, images, records, classes)
        if writes():
            write_scores(run, scores)
    return scores


def _check_images(run: Run, images: Sequence[ImageRecord]) -> None:
    if not images:
        raise RunError(f"{run.folder / 'images.jsonl'}: missing or empty; generate again")
    for image in images:
        run.image_bytes(image)


def _detections(
    run: Run,
    images: Sequence[ImageRecord],
    models: Models,
    targets: Sequence[str],
    progress: Progress | None,
) -> list[DetectionRecord]:
    """The images' rows of `detections.jsonl`, newly detected unless all are there already."""
    text = text_encoder_hash(models.detector_text_path())
    now = (models.detector_hash(), text, IOU, MIN_PROBABILITY, MAX_DETECTIONS)
    earlier = from_first(lambda: _earlier(run))
    known = {(r.file, r.sha256): r for r in earlier if _shape(r.detector) == now}
    records = [known.get((image.file, image.sha256)) for image in images]
    complete = [record for record in records if record and set(targets) <= set(record.names)]
    if len(complete) == len(images):
        return complete
    named = progress and (lambda done, total, _: progress(done, total, run.name))
    answer = _detect([run.folder / image.file for image in images], models, targets, named)
    detector = DetectorRecord(
        file=models.detector_file().name,
        sha256=models.detector_hash(),
        kind=answer.kind,
        size=answer.size,
        iou=IOU,
        min_probability=MIN_PROBABILITY,
        max_detections=MAX_DETECTIONS,
        text_encoder_sha256=text,
    )
    new = [
        DetectionRecord(
            file=image.file,
            sha256=image.sha256,
            detections=detections,
            names=answer.names,
            detector=detector,
        )
        for image, detections in zip(images, answer.detections, strict=True)
    ]
    if writes():
        write_records(run.folder / "detections.jsonl", new)
    return new


def _detect(
    files: Sequence[Path], models: Models, targets: Sequence[str], progress: Progress | None
) -> DetectorAnswer:
    """The detector's answer for all files; processes in step each run it over whole chunks of them."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    _, count = place()
    shares = [[file for chunk in chunks[n::count] for file in chunk] for n in range(count)]

    def of_share(share: Sequence[Path]) -> DetectorAnswer:
        text_encoder = models.detector_text_path()
        return detect(models.detector_file(), share, targets, progress, text_encoder)

    answers = each(shares, of_share)
    rows = [iter(answer.detections) for answer in answers]
    detections = [next(rows[n % count]) for n, chunk in enumerate(chunks) for _ in chunk]
    return replace(answers[0], detections=detections)


def _earlier(run: Run) -> list[DetectionRecord]:
    """Rows of `detections.jsonl`; none if the file is damaged, for it can be written anew."""
    try:
        return run.detections()
    except RunError:
        return []


def _shape(detector: DetectorRecord) -> tuple[object, ...]:
    """Everything that shapes the detections in an image."""
    text, limits = detector.text_encoder_sha256, (detector.min_probability, detector.max_detections)
    return detector.sha256, text, detector.iou, *limits


def _scores(
    run: str,
    images: Sequence[ImageRecord],
    records: Sequence[DetectionRecord],
    classes: Mapping[str, str],
) -> ScoresRecord:
    detections = {record.file: record.detections for record in records}
    rates, by_class, sweep = [], [], []
    for concept in classes:
        matches = match_images(images, detections, concept, classes, records[0].names)
        rates += compare_rates(run, concept, matches)
        by_class += compare_rates(run, concept, matches, by_class=True)
        for threshold in THRESHOLDS:
            sweep += compare_rates(run, concept, matches, threshold)
    return ScoresRecord(
        threshold=THRESHOLD,
        detectors=(records[0].detector,),
        rates=tuple(rates),
        by_class=tuple(by_class),
        sweep=tuple(sweep),
    )


def merge(*scores: ScoresRecord, unscored: Sequence[str] = ()) -> ScoresRecord:
    """The scores of several runs as one table; `unscored` says why others are not in it."""
    return ScoresRecord(
        threshold=THRESHOLD,
        detectors=tuple(dict.fromkeys(d for score in scores for d in score.detectors)),
        rates=tuple(rate for score in scores for rate in score.rates),
        by_class=tuple(rate for score in scores for rate in score.by_class),
        sweep=tuple(rate for score in scores for rate in score.sweep),
        unscored=tuple(unscored),
    )


def write_scores(run: Run, scores: ScoresRecord) -> None:
    """`scores.json` (everything), `scores.csv` (one row per comparison of the sweep), `scores.md`."""
    write_json(run.folder / "scores.json", asdict(scores))
    write_csv(run.folder / "scores.csv", csv_columns(), map(csv_row, scores.sweep))
    write_text(run.folder / "scores.md", markdown(scores))


def runs_with_images() -> tuple[list[Run], list[str]]:
    """Every run under `runs/` that has generated its images, by name, and why others cannot be read."""
    runs, unreadable = [], []
    for path in sorted(RUNS.glob("*/run.json")):
        try:
            if Run(path.parent).status("generate") == "done":
                runs.append(Run(path.parent))
        except (OSError, RunError) as error:
            unreadable.append(str(error))
    return runs, unreadable
