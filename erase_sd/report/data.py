"""A run folder as plain data: what its files hold, and what in them is missing or damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..data.concept import Concept
from ..errors import RunError
from ..files import read_json, read_rows
from ..run import Run, concepts_of
from ..scoring.rates import THRESHOLD, Row
from ..scoring.stage import Tables, Used

T = TypeVar("T")

STAGES = ("unlearn", "generate", "score")
IMAGE = {"file", "arm", "prompts", "prompt", "seed", "sha256"}
DETECTION = {"file", "sha256", "boxes", "names"}

# What people, and detectors, take for one another among COCO's classes.
LOOK_ALIKES = (
    {"apple", "orange"},
    {"bicycle", "motorcycle"},
    {"chair", "couch"},
    {"elephant", "cow"},
    {"horse", "cow"},
    {"dog", "cat"},
    {"bus", "truck"},
    {"tv", "laptop"},
)


@dataclass
class Data:
    """What a run folder holds. Parts that are missing are empty, and `missing` says so in words."""

    run: Run
    manifest: dict[str, Any]
    concepts: list[Concept]
    images: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `images.jsonl`, without the reference arm's."""
    detections: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Rows of `detections.jsonl` by file and by the hash of the image that was looked at."""
    scores: Tables | None = None
    threshold: float = THRESHOLD
    """Least probability of a detection that counts, 0-1."""
    training: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each `train.jsonl` that has any, by its name."""
    erased: dict[str, Any] = field(default_factory=dict)
    """`erased/erase.json`."""
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The concepts, as a title."""
        return ", ".join(concept.name for concept in self.concepts) or self.run.name

    def stage(self, name: str) -> dict[str, Any]:
        """A stage's entry in `run.json`; empty where it has not begun."""
        return dict(self.manifest["stages"].get(name, {}))

    def target(self, concept: str) -> str:
        """The detector's class for a concept, as `score` looked for it."""
        classes = self.stage("score").get("settings", {}).get("classes", {})
        return str(classes.get(concept, concept))

    def look_alikes(self, concept: str) -> list[str]:
        """The classes that are easily taken for a concept."""
        own = self.target(concept)
        near = {name for group in LOOK_ALIKES if own in group for name in group}
        return sorted(near - {own})


def read(run: Run) -> Data:
    """Everything that the report shows. Raises RunError where the folder is no run."""
    manifest = run.manifest
    data = Data(run, manifest, [])
    began = [stage for stage in STAGES if stage in manifest["stages"]]
    try:
        data.concepts = list(concepts_of(manifest)) if "unlearn" in began else []
    except (KeyError, TypeError):
        data.missing.append("run.json does not say which concepts were erased")
    data.missing += _next_stage(data)
    if "unlearn" in began:
        _read_unlearning(data)
    if "generate" in began:
        drawn = _rows(data, "images.jsonl", IMAGE)
        data.images = [row for row in drawn if row["arm"] != "reference"]
        found = _rows(data, "detections.jsonl", DETECTION) if "score" in began else []
        data.detections = {(row["file"], row["sha256"]): row for row in found}
    if data.stage("score").get("status") == "done":
        data.scores = _read(data, "scores.json", lambda path: _tables(data, read_json(path)))
    return data


def _next_stage(data: Data) -> list[str]:
    """A line on the first stage that is not done, with the command that does it."""
    of = f"--run {data.run.folder}"
    commands = {
        "unlearn": f"erase-sd unlearn --concept … {of}",
        "generate": f"erase-sd generate --prompts … {of}",
        "score": f"erase-sd score {of}",
    }
    done = {"unlearn": "unlearned", "generate": "drawn", "score": "scored"}
    for stage in STAGES:
        status = data.stage(stage).get("status")
        if status == "running":
            return [f"{stage} is not finished: it runs now, or was interrupted ({commands[stage]})"]
        if status != "done":
            return [f"Not {done[stage]} yet ({commands[stage]})"]
    return []


def _read_unlearning(data: Data) -> None:
    logs = sorted(path.name for path in data.run.folder.glob("*train.jsonl"))
    for name in logs or ["train.jsonl"]:
        if rows := _rows(data, name, {"step"}):
            data.training[name] = rows
    if data.stage("unlearn").get("status") == "done":
        data.erased = _read(data, "erased/erase.json", read_json) or {}


def _rows(data: Data, name: str, needed: set[str]) -> list[dict[str, Any]]:
    """The whole rows of a JSON lines file; what is not there or not whole goes to `missing`."""
    rows = _read(data, name, read_rows)
    if rows is None:
        return []
    whole = [row for row in rows if isinstance(row, dict) and needed <= row.keys()]
    if not rows:
        data.missing.append(f"{name} is missing or empty")
    elif len(whole) < len(rows):
        data.missing.append(f"{name}: {len(rows) - len(whole)} rows are damaged and left out")
    return whole


def _read(data: Data, name: str, parse: Callable[[Path], T]) -> T | None:
    try:
        return parse(data.run.folder / name)
    except RunError as error:
        data.missing.append(str(error).replace(f"{data.run.folder}/", ""))
        return None


def _tables(data: Data, stored: Any) -> Tables:
    try:
        data.threshold = float(stored["threshold"])
        parts = {
            part: [Row(**row) for row in stored[part]] for part in ("rows", "by_class", "sweep")
        }
        return Tables(**parts, detectors=[Used(**used) for used in stored["detectors"]])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"scores.json: damaged, or of another version ({error})") from None
