"""The evaluation of a run: CLIP-side measures of the original and the erased towers, on both sides."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .. import runtime
from ..errors import RunError, SettingError
from ..files import write_json, write_text
from ..models import erased as artifact
from ..models.presets import Models
from ..models.text_encoder import check_fit, load_clip, text_encoders
from ..run import Run, concepts_of
from . import clip_measures as clip_side
from . import galleries as labelled
from .clip_measures import MEASURES, SIDES, Arm, Progress
from .embedders import ClipEmbedder, Embedder, is_blip, load_blip
from .galleries import Side

TEMPLATES = (
    "a {}", "the {}", "a photo of a {}", "a picture of a {}", "there is a {} in the picture",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measure of one arm on one side, with its 95 % interval: a share 0-1, a drift 0-2."""

    run: str
    concept: str
    measure: str
    group: Side
    arm: Arm
    value: float
    n: int
    """Captions, images, or classes: the queries of the measure."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """All rows of a run, and what they rest on."""

    about: dict[str, Any]
    rows: list[Row]

    @property
    def note(self) -> str:
        """How to read the rows, and which pictures they rest on."""
        data = self.about["data"]
        return (
            f"In brackets the 95 % interval, as if all of one side were independent. "
            f"{data['forget']} images to forget and {data['retain']} to retain: {data['kind']}, "
            f"{data['folder']}."
        )


def evaluate(
    run: Run,
    models: Models,
    images: Path | None = None,
    templates: Sequence[str] = TEMPLATES,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures the original CLIP and the one with the run's erased towers; writes `evaluation.json`
    and `evaluation.csv`.

    `images` is a folder of other pictures than the run's own held-out pairs. The original is the
    pipeline's text encoder in the CLIP of `models`. Where that is a BLIP, it is measured alone, and
    nothing is written. Raises RunError before unlearning is done, and an EraseError for every other
    cause that is the user's.
    """
    check_templates(templates)
    concepts = concepts_of(run.require("unlearn", "unlearn first"))
    runtime.quiet_libraries()
    arms, about = _open(run, models)
    if images:
        gallery = labelled.open_folder(images, concepts)
    else:
        gallery = labelled.held_out(run, models, concepts)
    found = clip_side.measure(arms, gallery, concepts, templates, progress)
    name = "+".join(concept.name for concept in concepts)
    rows = [
        Row(run.name, name, measure, side, arm, **asdict(found[arm][measure, side]))
        for measure in MEASURES
        for side in SIDES
        for arm in arms
        if (measure, side) in found[arm]
    ]
    about |= {
        "data": gallery.about | {s: sum(p.side == s for p in gallery.pictures) for s in SIDES},
        "templates": list(templates),
        "versions": runtime.versions(),
    }
    evaluation = Evaluation(about, rows)
    if "erased" in arms:
        with run.lock():
            _write(run.folder, evaluation)
    return evaluation


def check_templates(templates: Sequence[str]) -> None:
    """SettingError where a template has not exactly one place for the class's name."""
    for template in templates:
        if template.count("{}") != 1:
            raise SettingError(f"--template {template!r}: needs {{}} once, where the name goes")


def _open(run: Run, models: Models) -> tuple[dict[Arm, Embedder], dict[str, Any]]:
    """The original and the erased towers, on the device, and what they are; a BLIP alone."""
    folder = models.clip_folder(0)
    about: dict[str, Any] = {"clip": str(models.clips[0])}
    if is_blip(folder):
        blip = load_blip(folder)
        blip.model.to(runtime.device())
        runtime.say(f"{folder}: a BLIP, which no run erases; the original is measured alone")
        return {"original": blip}, about | {"clip_digest": blip.digest}
    described = artifact.check(run.folder / "erased")
    if described["base"]["fingerprint"] != models.fingerprint():
        raise RunError(
            f"{run.folder}: unlearned from {described['base']['model']} as it was then; the files of "
            f"{models.model} are others"
        )
    encoder = text_encoders(models.folder)[0]
    check_fit(folder, artifact.folder_of(run.folder / "erased", encoder.name))
    clip = load_clip(folder, encoder)
    clip.model.to(runtime.device())
    after = artifact.erased_clip(run.folder / "erased", encoder.name, clip)
    about |= {
        "clip_digest": clip.digest, "encoder": encoder.name,
        "erased_sha256": described["weights_sha256"], "image_tower_erased": encoder.name in described["image_tower_sha256"],
    }  # fmt: skip
    return {"original": ClipEmbedder(clip), "erased": ClipEmbedder(after)}, about


def _write(folder: Path, evaluation: Evaluation) -> None:
    rows = [asdict(row) for row in evaluation.rows]
    write_json(folder / "evaluation.json", {"about": evaluation.about, "rows": rows})
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "evaluation.csv", out.getvalue())


HEADINGS = ("measure", "images", "n", "original", "erased")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each measure and side: both arms, shares in percent; a drift is of the erased alone."""
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row.measure, row.group), {})[row.arm] = row
    return [
        [
            re.sub(r"_r(\d+)$", r" R@\1", measure).replace("_", " "),
            side,
            str(max(row.n for row in arms.values())),
            *(_value(arms[arm]) if arm in arms else "" for arm in ("original", "erased")),
        ]
        for (measure, side), arms in lines.items()
    ]


def _value(row: Row) -> str:
    """ "45.0 [38.1, 52.0]" for a share, "0.450 [0.381, 0.520]" for a drift."""
    times, digits = (1, 3) if row.measure.startswith("drift") else (100, 1)
    text = f"{times * row.value:.{digits}f}"
    if row.low is None or row.high is None:
        return text
    return f"{text} [{times * row.low:.{digits}f}, {times * row.high:.{digits}f}]"
