"""The score stage: detections in a run's images, then detection rates as JSON, CSV and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ..data.concept import Concept
from ..detection.detector import IOU, MAX_DETECTIONS
from ..errors import RunError
from ..files import write_csv, write_json, write_text
from ..models.presets import Models
from ..run import RUNS, Run
from ..run.measurements import DetectionRecord, ScoresRecord
from ..run.records import ImageRecord
from ..runtime import Progress
from ..sharing import together, writes
from .classes import classes_of
from .detections import Detections
from .matching import match_images
from .rates import THRESHOLD, THRESHOLDS, compare_rates
from .table import csv_columns, csv_row, markdown


def score(
    run: Run,
    models: Models,
    detector_class: Sequence[str] = (),
    progress: Progress | None = None,
) -> ScoresRecord:
    """Detects objects in every image of the run; writes `detections.jsonl` and `scores.*`.

    `detector_class` names the detector's class of each concept, as `classes_of` reads it. Images that
    the same detector has already seen are not run through it again. A launcher's processes share the
    images. Raises RunError before generate is done or if an image has changed since, and SettingError
    if the detector lacks a class.
    """
    with together():
        return _score(run, models, detector_class, progress)


def _score(
    run: Run, models: Models, detector_class: Sequence[str], progress: Progress | None
) -> ScoresRecord:
    run.generated()
    concepts = run.unlearned().concepts
    classes = classes_of(concepts, detector_class)
    settings = {
        "detector": models.detector_file().name,
        "detector_sha256": models.detector_hash(),
        "iou": IOU,
        "max_detections": MAX_DETECTIONS,
        "classes": classes,
    }
    with run.stage("score", settings):
        # Read under the lock: another process may have generated again just before.
        images = run.images()
        _check_images(run, images)
        detections = Detections(run, models, list(classes.values()))
        records = detections.of(images, progress)
        scores = _scores(run.name, images, records, concepts, classes)
        if writes():
            detections.write(images)
            write_scores(run, scores)
    return scores


def _check_images(run: Run, images: Sequence[ImageRecord]) -> None:
    if not images:
        raise RunError(f"{run.folder / 'images.jsonl'}: missing or empty; generate again")
    for image in images:
        run.image_bytes(image)


def _scores(
    run: str,
    images: Sequence[ImageRecord],
    records: Sequence[DetectionRecord],
    concepts: Sequence[Concept],
    classes: Mapping[str, str],
) -> ScoresRecord:
    detections = {record.file: record.detections for record in records}
    names, rates, by_class, sweep = records[0].names, [], [], []
    for concept in classes:
        matches = match_images(images, detections, concept, classes, names, concepts)
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
