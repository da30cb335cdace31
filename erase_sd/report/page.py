"""The page of one run: what its template is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import erase_sd

from ..data.kinds import KINDS as FILE_KINDS
from ..files import write_text
from ..run import Run
from ..scoring.rates import GROUPS, Row, lines_of
from ..scoring.table import table_of
from .data import STAGES, Data, read
from .figures import training_curves
from .shots import KINDS, OUTCOMES, Shot, shots_of
from .verdict import RULES, Verdict, verdict_of

STRIP = 6  # pairs at the top of a page


@dataclass(frozen=True)
class Summary:
    """What the index says of a run."""

    path: Path
    data: Data
    verdict: Verdict
    strip: list[tuple[int, Shot]]


def write_page(run: Run) -> Summary:
    """Writes `report.html` into the run folder."""
    data = read(run)
    shots = shots_of(data)
    verdict, strip = verdict_of(data, shots), _strip(shots)
    page = render(
        "report.html.j2",
        data=data, verdict=verdict, strip=strip, named=bool(strip and _named(strip[0][1])),
        rates=_rates(data), rules=RULES, shots=shots, judged=any(s.outcomes for s in shots),
        files=list(dict.fromkeys(shot.prompts for shot in shots)), filters=_filters(shots),
        kinds=KINDS, outcomes=OUTCOMES, tables=_tables(data), gone=[concept.name for concept in data.concepts],
        curves=_curves(data), provenance=_provenance(data),
    )  # fmt: skip
    path = run.folder / "report.html"
    write_text(path, page)
    return Summary(path, data, verdict, strip)


def render(template: str, **values: Any) -> str:
    """A template of ours with the style and the script in it; `values` are escaped."""
    environment = Environment(
        loader=PackageLoader("erase_sd.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    assets = resources.files("erase_sd.report") / "assets"
    style, script = ((assets / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return environment.get_template(template).render(
        css=style, js=script, version=erase_sd.__version__, **values
    )


def _named(shot: Shot) -> bool:
    return shot.kind in ("direct", "synonym")


def _strip(shots: list[Shot]) -> list[tuple[int, Shot]]:
    """The first pairs, one a prompt, of those that name the concept where there are any."""
    chosen: dict[str, tuple[int, Shot]] = {}
    named = any(_named(shot) for shot in shots)
    for number, shot in enumerate(shots):
        if _named(shot) or not named:
            chosen.setdefault(shot.prompt, (number, shot))
    return list(chosen.values())[:STRIP]


def _labels(data: Data, rows: list[Row]) -> list[str]:
    """What each line's rows were looked for, as `table_of` has it, and what sets it apart."""
    labels = []
    for line, (row, _, _) in zip(table_of(rows)[1], lines_of(rows), strict=True):
        notes = ["look-alike"] if _is_look_alike(data, row) else []
        if len(data.concepts) > 1 and row.group != "target":
            notes.append(f"of {row.concept}")  # a group is of one concept's captions
        labels.append(f"{line[1]} ({', '.join(notes)})" if notes else line[1])
    return labels


def _is_look_alike(data: Data, row: Row) -> bool:
    if row.kind or row.group == "target":
        return False
    return row.name in data.look_alikes(row.concept)


def _rates(data: Data) -> list[tuple[str, Row, Row]]:
    """Label, original, erased: for each concept, kind and group, and for each look-alike."""
    if not data.scores:
        return []
    rows = data.scores.rows + [row for row in data.scores.by_class if _is_look_alike(data, row)]
    lines = zip(_labels(data, rows), lines_of(rows), strict=True)
    return [(label, before, after) for label, (before, after, _) in lines]


def _filters(shots: list[Shot]) -> list[tuple[str, str, list[tuple[str, str, int]]]]:
    """Attribute, title, and (value, label, count) of the choices; groups of one choice are none."""
    files = Counter(shot.prompts for shot in shots)
    kinds = Counter(shot.kind for shot in shots)
    outcomes = Counter(outcome for shot in shots for outcome in shot.outcomes)
    groups = [
        ("prompts", "Prompts", [(str(i), name, files[name]) for i, name in enumerate(files)]),
        ("kind", "Kind", [(kind, KINDS[kind], kinds[kind]) for kind in KINDS if kind in kinds]),
        ("outcome", "Outcome", [(name, name, outcomes[name]) for name in OUTCOMES if outcomes]),
    ]
    return [group for group in groups if len(group[2]) > 1]


def _tables(data: Data) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Caption, headings and lines."""
    if not data.scores:
        return []
    kinds = (None, *FILE_KINDS)
    swept = sorted(
        data.scores.sweep,
        key=lambda row: (row.concept, kinds.index(row.kind), GROUPS.index(row.group)),
    )
    parts = (data.scores.rows, data.scores.by_class, swept)
    plain, classes, sweep = (
        [
            [label, *line[2:]]
            for label, line in zip(_labels(data, rows), table_of(rows)[1], strict=True)
        ]
        for rows in parts
    )
    for line, (row, _, _) in zip(sweep, lines_of(swept), strict=True):
        line.insert(1, f"{row.threshold:g}")
    heads = table_of(data.scores.rows)[0][1:]
    return [
        ("Detection rates", heads, plain),
        ("By class", heads, classes),
        ("At other thresholds", (heads[0], "threshold", *heads[1:]), sweep),
    ]


def _curves(data: Data) -> list[dict[str, Any]]:
    settings, unlearned = data.stage("unlearn").get("settings", {}), data.stage("unlearn")
    curves = []
    for i, (name, rows) in enumerate(data.training.items()):
        back = sum(bool(row.get("rolled_back")) for row in rows)
        ended = ", ended by its thresholds" if unlearned.get("stopped") == "thresholds" else ""
        limits = [settings.get(name) for name in ("forget_threshold", "retain_floor")]
        words = (
            f"{rows[-1]['step']} steps of at most {settings.get('steps', '?')}{ended}; {back} of "
            f"{len(rows)} looks at the validation images led to a roll-back."
        )
        if any(limit is not None for limit in limits):
            words += " Dashed: the thresholds."
        headings = list(dict.fromkeys(key for row in rows for key in row))
        lines = [[_brief(row.get(key, "")) for key in headings] for row in rows]
        curves.append(
            {"name": name, "words": words, "headings": headings, "lines": lines,
             "charts": training_curves(rows, settings, f"curve{i}-")}
        )  # fmt: skip
    return curves


def _provenance(data: Data) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title and facts of each stage, of the erased encoder, and of the rest of `run.json`."""
    parts: list[tuple[str, dict[str, Any]]] = []
    for name in STAGES:
        stage = data.stage(name)
        parts += [(name, stage.pop("settings", {})), (f"{name}: what came of it", stage)]
    erased = {k: v for k, v in data.erased.items() if k not in ("settings", "versions")}
    rest = {k: v for k, v in data.manifest.items() if k != "stages"}
    parts += [("erased/erase.json", erased), ("run.json", rest)]
    return [(title, list(_leaves(part))) for title, part in parts if part]


def _leaves(value: Any, *path: str) -> Iterable[tuple[str, str]]:
    """Every leaf with the path to it."""
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        value = ", ".join(map(str, value)) or None
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value, 1)}
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, *path, key.replace("_", " "))
    else:
        yield " › ".join(path), _brief(value)  # noqa: RUF001


def _brief(value: Any) -> str:
    if value is None or value == {}:
        return "not set"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
