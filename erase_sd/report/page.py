"""The page of one run: everything its template shows."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.pair import PROMPT_KINDS
from ..files import write_text
from ..run import Run
from ..run.folder import STAGES
from ..run.measurements import RATE_GROUPS, RateComparison
from ..run.records import TrainRecord, UnlearnRecord
from ..scoring.table import note_of, object_of, table_of
from .data import ReportData, read_report_data
from .figures import training_curves
from .image_pairs import KIND_LABELS, OUTCOMES, ImagePair, image_pairs_of
from .ladder import LADDER_HEADINGS, ladder_lines
from .rendering import render_template
from .verdict import RULES, Verdict, verdict_of

STRIP_LENGTH = 6  # image pairs at the top of a page

PageTable = tuple[str, Sequence[str], list[list[str]]]
"""Caption, headings and lines."""


@dataclass(frozen=True)
class ReportPage:
    """A page that was written, with what the index shows of it."""

    path: Path
    data: ReportData
    verdict: Verdict
    strip: list[tuple[int, ImagePair]]


def write_page(run: Run) -> ReportPage:
    """Writes `report.html` into the run folder."""
    data = read_report_data(run)
    pairs = image_pairs_of(data)
    verdict, strip = verdict_of(data, pairs), strip_of(pairs)
    page = render_template(
        "report.html.j2",
        data=data, verdict=verdict, strip=strip, strip_named=any(_is_named(p) for _, p in strip),
        rates=_rates(data), rules=RULES, pairs=pairs, judged=any(p.outcomes for p in pairs),
        files=list(dict.fromkeys(pair.prompt_file for pair in pairs)), filters=_filters(pairs),
        kinds=KIND_LABELS, outcomes=OUTCOMES, tables=_tables(data),
        note=note_of(data.scores) if data.scores else "",
        concepts=[concept.name for concept in data.concepts],
        curves=_curves(data), provenance=_provenance(data),
    )  # fmt: skip
    path = run.folder / "report.html"
    write_text(path, page)
    return ReportPage(path, data, verdict, strip)


def _is_named(pair: ImagePair) -> bool:
    return pair.kind in ("named", "synonym")


def strip_of(pairs: Sequence[ImagePair]) -> list[tuple[int, ImagePair]]:
    """The first pairs, one per prompt, of those that name a concept if there are any; of several
    concepts, from each in turn."""
    chosen: dict[str | None, dict[str, tuple[int, ImagePair]]] = {}
    any_named = any(_is_named(pair) for pair in pairs)
    for number, pair in enumerate(pairs):
        if _is_named(pair) or not any_named:
            of_concept = chosen.setdefault(pair.concept if any_named else None, {})
            of_concept.setdefault(pair.prompt, (number, pair))
    rounds = itertools.zip_longest(*(of_concept.values() for of_concept in chosen.values()))
    in_turn = [entry for entries in rounds for entry in entries if entry]
    return sorted(in_turn[:STRIP_LENGTH], key=lambda entry: entry[0])


def _labels(data: ReportData, rates: Sequence[RateComparison]) -> list[str]:
    """What each comparison is about, with a note that sets it apart."""
    labels = []
    for row in rates:
        notes = ["look-alike"] if _is_look_alike(data, row) else []
        if len(data.concepts) > 1 and row.group != "target":
            notes.append(f"for {row.concept}")  # each concept has its own groups
        labels.append(object_of(row) + (f" ({', '.join(notes)})" if notes else ""))
    return labels


def _is_look_alike(data: ReportData, rates: RateComparison) -> bool:
    if rates.kind != "plain" or rates.group == "target":
        return False
    return rates.class_name in data.look_alikes(rates.concept)


def _rates(data: ReportData) -> list[tuple[str, RateComparison]]:
    """Labelled rates of each concept, kind of prompt and group, and of each look-alike."""
    if not data.scores:
        return []
    look_alikes = [rates for rates in data.scores.by_class if _is_look_alike(data, rates)]
    rates = [*data.scores.rates, *look_alikes]
    return list(zip(_labels(data, rates), rates, strict=True))


def _filters(pairs: Sequence[ImagePair]) -> list[tuple[str, str, list[tuple[str, str, int]]]]:
    """Attribute, title, and (value, label, count) of the choices; only if there is a choice."""
    files = Counter(pair.prompt_file for pair in pairs)
    kinds = Counter(pair.kind for pair in pairs)
    outcomes = Counter(outcome for pair in pairs for outcome in pair.outcomes)
    filters = [
        ("prompts", "Prompts", [(str(i), name, files[name]) for i, name in enumerate(files)]),
        ("kind", "Kind", [(k, label, kinds[k]) for k, label in KIND_LABELS.items() if k in kinds]),
        ("outcome", "Outcome", [(name, name, outcomes[name]) for name in OUTCOMES if outcomes]),
    ]
    return [choices for choices in filters if len(choices[2]) > 1]


def _tables(data: ReportData) -> list[PageTable]:
    scores = data.scores
    if not scores:
        return []
    sweep = sorted(
        scores.sweep,
        key=lambda rates: (
            rates.concept, PROMPT_KINDS.index(rates.kind), RATE_GROUPS.index(rates.group)
        ),
    )  # fmt: skip
    by_threshold = _lines(data, sweep)
    for line, rates in zip(by_threshold, sweep, strict=True):
        line.insert(1, f"{rates.threshold:g}")
    headings = table_of(scores.rates)[0][1:]
    return [
        (
            "The ladder, from prompts that name it to attacks, and what is retained",
            LADDER_HEADINGS,
            ladder_lines(data),
        ),
        ("Detection rates", headings, _lines(data, scores.rates)),
        ("By class", headings, _lines(data, scores.by_class)),
        ("At other thresholds", (headings[0], "threshold", *headings[1:]), by_threshold),
    ]


def _lines(data: ReportData, rates: Sequence[RateComparison]) -> list[list[str]]:
    """The table's lines without the run's name, which is the same in all of them."""
    lines = zip(_labels(data, rates), table_of(rates)[1], strict=True)
    return [[label, *line[2:]] for label, line in lines]


def _curves(data: ReportData) -> list[dict[str, Any]]:
    """For each text encoder or U-Net that was trained: log, summary, charts, and the charts' numbers."""
    unlearn = data.record.stages.unlearn
    settings = unlearn.settings if unlearn else {}
    curves = []
    for i, (encoder, rows) in enumerate(data.training.items()):
        headings, lines = _training_table(rows)
        curves.append(
            {"encoder": encoder, "log": data.run.training_log(encoder).name,
             "summary": _training_summary(encoder, rows, unlearn),
             "headings": headings, "lines": lines,
             "charts": training_curves(rows, settings, f"curve{i}-")}
        )  # fmt: skip
    return curves


def _training_summary(
    encoder: str, rows: Sequence[TrainRecord], unlearn: UnlearnRecord | None
) -> str:
    settings = unlearn.settings if unlearn else {}
    result = unlearn.encoders.get(encoder) if unlearn else None
    stopped = ", stopped by the thresholds" if result and result.stopped == "thresholds" else ""
    rolled_back = sum(row.rolled_back for row in rows)
    return (
        f"{rows[-1].step} of at most {settings.get('steps', '?')} steps{stopped}; {rolled_back} of "
        f"{len(rows)} validation steps were rolled back."
    )


def _training_table(rows: Sequence[TrainRecord]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a training log, with a column for each loss term."""
    cells: list[dict[str, Any]] = []
    for row in rows:
        fields = {name: value for name, value in asdict(row).items() if value is not None}
        terms = fields.pop("terms")
        cells.append({"step": fields.pop("step"), **terms, **fields})
    headings = list(dict.fromkeys(name for line in cells for name in line))
    lines = [[_brief(line.get(name, "")) for name in headings] for line in cells]
    return [_words(name) for name in headings], lines


def _provenance(data: ReportData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title and facts of each stage, of the erasure, and of the rest of `run.json`."""
    sections: list[tuple[str, dict[str, Any]]] = []
    for name in STAGES:
        if entry := data.stage(name):
            results = {key: value for key, value in asdict(entry).items() if value is not None}
            settings = results.pop("settings")
            sections += [(f"{name}: settings", settings), (f"{name}: results", results)]
    if data.erasure:
        erasure = asdict(data.erasure)
        del erasure["settings"], erasure["versions"]  # shown with the stage and with the run
        sections.append(("erased/erase.json", erasure))
    rest = {key: value for key, value in asdict(data.record).items() if value is not None}
    del rest["stages"]
    sections.append(("run.json", rest))
    return [(title, list(_leaves(section))) for title, section in sections if section]


def _leaves(value: Any, *path: str) -> Iterable[tuple[str, str]]:
    """Every leaf with the path to it."""
    if isinstance(value, list | tuple):
        if any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value, 1)}
        else:
            value = ", ".join(map(str, value))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, *path, _words(key))
    else:
        yield " › ".join(path), _brief(value)  # noqa: RUF001


def _words(name: str) -> str:
    """A field's name for a reader: `peak memory, MB`."""
    return re.sub(r"_mb$", ", MB", name).replace("_", " ")


def _brief(value: Any) -> str:
    if value is None:
        return "not set"
    if value in ("", {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
