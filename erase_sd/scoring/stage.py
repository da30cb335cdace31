"""The score stage: detections of a run's images, then its tables as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.concept import Concept
from ..detection.detector import IOU, LOWEST, MAX_DETECTIONS, detect
from ..errors import RunError, SettingError
from ..files import hash_file, read_rows, write_json, write_rows, write_text
from ..models.presets import Models
from ..run import RUNS, Run, concepts_of
from .rates import THRESHOLD, THRESHOLDS, Pair, Row, as_json, pairs_of, rows_of
from .table import table_of

NOTE = (
    f"Detected with probability of at least {THRESHOLD}; in brackets the 95 % Wilson interval; p: "
    "McNemar's exact test on the same prompts and seeds."
)
REFERENCE_NOTE = (
    "Without it: the original model on the prompts with the concept taken out, and erased compared "
    "with that."
)


@dataclass(frozen=True)
class Used:
    """The detector that the rows rest on."""

    kind: str
    """Such as "yolov5n anchor-based", the original's, or "yolov5n anchor-free", ultralytics' own."""
    file: str
    sha256: str
    size: int
    """Pixels, the side of the square that each image is fitted into."""
    iou: float = IOU
    lowest: float = LOWEST
    """Least probability that is kept."""
    max_detections: int = MAX_DETECTIONS

    def __str__(self) -> str:
        return f"{self.file} ({self.kind}, sha256 {self.sha256[:12]}) at {self.size} px, IoU {self.iou}"


Progress = Callable[[int, int, str], None]


@dataclass
class Tables:
    """A run's rows at the default threshold, class by class, and at all thresholds."""

    rows: list[Row] = field(default_factory=list)
    by_class: list[Row] = field(default_factory=list)
    sweep: list[Row] = field(default_factory=list)
    detectors: list[Used] = field(default_factory=list, kw_only=True)
    """One for a run; several runs may have been scored by different ones."""

    @property
    def note(self) -> str:
        """How to read the rows, and which detector they rest on."""
        notes = [NOTE, f"Detector: {'; '.join(map(str, self.detectors))}."]
        if any(row.arm == "reference" for row in self.rows):
            notes.insert(1, REFERENCE_NOTE)
        return " ".join(notes)

    def add(self, run: str, concept: str, pairs: Sequence[Pair]) -> None:
        """Adds a concept's rows to all three."""
        self.rows += rows_of(run, concept, pairs)
        self.by_class += rows_of(run, concept, pairs, by_class=True)
        for threshold in THRESHOLDS:
            self.sweep += rows_of(run, concept, pairs, threshold)

    def __add__(self, other: Tables) -> Tables:
        return Tables(
            self.rows + other.rows,
            self.by_class + other.by_class,
            self.sweep + other.sweep,
            detectors=list(dict.fromkeys(self.detectors + other.detectors)),
        )


def score(
    run: Run,
    models: Models,
    detector_class: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> Tables:
    """Detects in every image of the run and writes `detections.jsonl` and `scores.*`.

    `detector_class` is the detector's word for a concept, as `classes_of` reads it. What was
    detected by the same detector in the same bytes is not detected again. Raises RunError before
    generate is done or where an image is no longer what was made, and SettingError where the
    detector has no class for a concept.
    """
    manifest = run.require("generate", "generate first")
    images = read_rows(run.folder / "images.jsonl")
    _check(run, images)
    concepts = concepts_of(manifest)
    given = [detector_class] if isinstance(detector_class, str) else detector_class
    classes = classes_of(concepts, given)
    stage = {
        "detector": models.detector_file().name,
        "detector_sha256": models.detector_hash(),
        "iou": IOU,
        "max_detections": MAX_DETECTIONS,
        "classes": classes,
    }
    with run.stage("score", stage) as entry:
        used, names, boxes = _detections(run, images, models, entry, progress)
        tables = Tables(detectors=[used])
        erased = [*concepts, *(Concept(name) for name in classes.values())]
        for concept in concepts:
            pairs = pairs_of(images, boxes, concept, classes[concept.name], erased, names)
            tables.add(run.name, concept.name, pairs)
        write_tables(run.folder, tables)
    return tables


def classes_of(concepts: Sequence[Concept], given: Sequence[str]) -> dict[str, str]:
    """The detector's class of each concept: its own name, unless `given` says another.

    An entry is `concept=class`, or just the class where there is one concept. Raises SettingError.
    """
    classes = {concept.name: concept.name for concept in concepts}
    for text in given:
        name, equals, target = text.rpartition("=")
        if not equals and len(classes) == 1:
            [name] = classes
        if name not in classes or not target:
            raise SettingError(
                f"--detector-class {text}: needs concept=class, with one of the run's concepts: "
                f"{', '.join(classes)}"
            )
        classes[name] = target
    return classes


def _check(run: Run, images: list[dict[str, Any]]) -> None:
    if not images:
        raise RunError(f"{run.folder / 'images.jsonl'}: missing or empty; generate again")
    for image in images:
        path = run.folder / image["file"]
        if not path.is_file():
            raise RunError(f"{path}: missing; generate again")
        if hash_file(path) != image["sha256"]:
            raise RunError(f"{path}: damaged, not the image that was made; generate again")


def _detections(
    run: Run,
    images: list[dict[str, Any]],
    models: Models,
    entry: dict[str, Any],
    progress: Progress | None,
) -> tuple[Used, list[str], dict[str, list[dict[str, Any]]]]:
    """The detector, its names, and boxes by file; from `detections.jsonl` where it still holds."""
    path, wanted = run.folder / "detections.jsonl", entry["settings"]
    fixed = {"detector_sha256": wanted["detector_sha256"], "iou": IOU, "lowest": LOWEST}
    known = {
        (row["file"], row["sha256"]): row
        for row in read_rows(path)
        if "kind" in row and fixed.items() <= row.items()
    }
    rows = [known.get((image["file"], image["sha256"])) for image in images]
    if not all(rows):
        files = [run.folder / image["file"] for image in images]
        targets = list(wanted["classes"].values())
        found = detect(
            models.detector_file(), files, targets,
            progress and (lambda done, of: progress(done, of, run.name)),
        )  # fmt: skip
        about = fixed | {key: found[key] for key in ("names", "size", "kind")}
        rows = [
            {"file": image["file"], "sha256": image["sha256"], "boxes": boxes,
             "detector": wanted["detector"]} | about
            for image, boxes in zip(images, found["rows"], strict=True)
        ]  # fmt: skip
        write_rows(path, [row for row in rows if row])
    whole = [row for row in rows if row]
    kind, size, names = (whole[0][key] for key in ("kind", "size", "names"))
    used = Used(kind, wanted["detector"], wanted["detector_sha256"], size)
    return used, names, {row["file"]: row["boxes"] for row in whole}


def write_tables(folder: Path, tables: Tables) -> None:
    """`scores.json` (all tables), `scores.csv` (the sweep), `scores.md` (for a reader)."""
    parts = {
        name: [as_json(row) for row in getattr(tables, name)]
        for name in ("rows", "by_class", "sweep")
    }
    about = {"threshold": THRESHOLD, "detectors": [asdict(used) for used in tables.detectors]}
    write_json(folder / "scores.json", about | parts)
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_json(row) for row in tables.sweep)
    write_text(folder / "scores.csv", out.getvalue())
    write_text(folder / "scores.md", markdown(tables))


def all_runs() -> list[Run]:
    """Every run under `runs/` that has images, by name."""
    runs = [Run(path.parent) for path in sorted(RUNS.glob("*/run.json"))]
    return [run for run in runs if run.status("generate") == "done"]


def markdown(tables: Tables) -> str:
    """The table of `table_of` in Markdown, with a line that says how to read it."""
    headings, cells = table_of(tables.rows)
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "--:|" * (len(headings) - 2)]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join(lines) + f"\n\n{tables.note}\n"
