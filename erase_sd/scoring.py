"""The score stage: detections of a run's images, then its tables as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .detect import IOU, LOWEST, MAX_DETECTIONS, detect
from .errors import RunError
from .files import hash_file, read_rows, write_json, write_rows, write_text
from .pairs.concepts import Concept
from .presets import Models
from .rates import THRESHOLD, THRESHOLDS, Pair, Row, as_json, pairs_of, rows_of
from .rundir import RUNS, Run


@dataclass
class Tables:
    """A run's rows at the default threshold, class by class, and at all thresholds."""

    rows: list[Row] = field(default_factory=list)
    by_class: list[Row] = field(default_factory=list)
    sweep: list[Row] = field(default_factory=list)

    def add(self, run: str, concept: str, pairs: Sequence[Pair]) -> None:
        """Adds a concept's rows to all three."""
        self.rows += rows_of(run, concept, pairs)
        self.by_class += rows_of(run, concept, pairs, by_class=True)
        for threshold in THRESHOLDS:
            self.sweep += rows_of(run, concept, pairs, threshold)

    def __add__(self, other: Tables) -> Tables:
        return Tables(
            self.rows + other.rows, self.by_class + other.by_class, self.sweep + other.sweep
        )


def score(run: Run, models: Models, detector_class: str | None = None) -> Tables:
    """Detects in every image of the run and writes `detections.jsonl` and `scores.*`.

    What was detected by the same detector in the same
    bytes is not detected again. Raises RunError before generate is done or where an image is no
    longer what was made.
    """
    manifest = run.require("generate", "generate first")
    images = read_rows(run.folder / "images.jsonl")
    _check(run, images)
    concepts = concepts_of(manifest)
    stage = {
        "detector": models.detector_file().name,
        "detector_sha256": models.detector_hash(),
        "iou": IOU,
        "max_detections": MAX_DETECTIONS,
        "detector_class": detector_class,
    }
    with run.stage("score", stage) as entry:
        names, boxes = _detections(run, images, models, entry)
        tables = Tables()
        for concept in concepts:
            target = detector_class if detector_class and len(concepts) == 1 else concept.name
            pairs = pairs_of(images, boxes, concept, target, concepts, names)
            tables.add(run.name, concept.name, pairs)
        write_tables(run.folder, tables)
    return tables


def concepts_of(manifest: dict[str, Any]) -> list[Concept]:
    """The concepts that a run erased."""
    stored = manifest["stages"]["unlearn"]["settings"]["concepts"]
    return [Concept(c["name"], tuple(c["synonyms"]), tuple(c["keep_senses"])) for c in stored]


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
    run: Run, images: list[dict[str, Any]], models: Models, entry: dict[str, Any]
) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """The detector's names, and boxes by file; from `detections.jsonl` where it still holds."""
    path, detector = run.folder / "detections.jsonl", entry["settings"]["detector_sha256"]
    known = {
        (row["file"], row["sha256"]): row
        for row in read_rows(path)
        if row["detector_sha256"] == detector
    }
    rows = [known.get((image["file"], image["sha256"])) for image in images]
    names = next((row["names"] for row in rows if row), None)
    if names is None or not all(rows):
        found = detect(models.detector_file(), [run.folder / image["file"] for image in images])
        names = found["names"]
        rows = [
            {"file": image["file"], "sha256": image["sha256"], "boxes": boxes,
             "detector": models.detector_file().name, "detector_sha256": detector, "names": names,
             "size": found["size"], "iou": IOU, "lowest": LOWEST}
            for image, boxes in zip(images, found["rows"], strict=True)
        ]  # fmt: skip
        write_rows(path, [row for row in rows if row])
    return names, {row["file"]: row["boxes"] for row in rows if row}


def write_tables(folder: Path, tables: Tables) -> None:
    """`scores.json` (all tables), `scores.csv` (the sweep), `scores.md` (for a reader)."""
    parts = {name: [as_json(row) for row in rows] for name, rows in vars(tables).items()}
    write_json(folder / "scores.json", {"threshold": THRESHOLD} | parts)
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_json(row) for row in tables.sweep)
    write_text(folder / "scores.csv", out.getvalue())
    write_text(folder / "scores.md", markdown(tables.rows))


def all_runs() -> list[Run]:
    """Every run under `runs/` that has images, by name."""
    runs = [Run(path.parent) for path in sorted(RUNS.glob("*/run.json"))]
    return [run for run in runs if run.status("generate") == "done"]


NOTE = (
    f"Detected with probability of at least {THRESHOLD}; in brackets the 95 % Wilson interval; p: "
    "McNemar's exact test on the same prompts and seeds."
)
HEADINGS = ("run", "looked for", "n", "original %", "erased %", "change", "p")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each run, concept and group: what both arms show, and the difference."""
    lines = []
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert after.difference is not None and after.p_value is not None
        what = {
            "target": after.concept,
            "retained_same": f"{after.name or 'others'}, same captions",
            "retained_other": f"{after.name or 'others'}, elsewhere",
        }[after.group]
        change = f"{100 * after.difference:+.1f}"
        lines.append(
            [
                after.run,
                what,
                str(after.n),
                _rate(before),
                _rate(after),
                change,
                f"{after.p_value:.1g}",
            ]
        )
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """The table of `cells` in Markdown, with a line that says how to read it."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "--:|" * 5]
    lines += ["| " + " | ".join(line) + " |" for line in cells(rows)]
    return "\n".join(lines) + f"\n\n{NOTE}\n"


def _rate(row: Row) -> str:
    return f"{100 * row.rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
