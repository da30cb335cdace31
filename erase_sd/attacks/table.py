"""The table of attacks for a reader, one line per row of `attacks.json`."""

from __future__ import annotations

from collections.abc import Sequence

from ..run.measurements import AttackRecord, AttacksRecord
from ..scoring.rates import percent
from ..scoring.table import markdown_table

ATTACK_HEADINGS = (
    "attack", "concept", "reads", "n", "attacked %", "no attack %", "original %",
    "original, same input %", "seconds",
)  # fmt: skip
FOUND_SHOWN = 5  # words or prompts shown per row


def attack_lines(rows: Sequence[AttackRecord]) -> list[list[str]]:
    """The table's lines, the attack's name in the first of its rows only."""
    lines = []
    for row, before in zip(rows, [None, *rows], strict=False):
        first = before is None or (before.attack, before.concept) != (row.attack, row.concept)
        same_input = percent(row.same_input) if row.same_input else ""
        lines.append(
            [
                label_of(row), row.concept, row.access, str(row.attacked.n), percent(row.attacked),
                percent(row.no_attack), percent(row.original), same_input,
                f"{row.seconds:.0f}" if first else "",
            ]
        )  # fmt: skip
    return lines


def label_of(row: AttackRecord) -> str:
    """An attack's row in words ("embeddings, 2 embeddings"), with its split unless that is held-out."""
    label = row.row if row.attack == "none" else f"{row.attack}, {row.row}"
    split = row.settings.get("split", "held-out")
    return label if split == "held-out" else f"{label} ({split} captions)"


def found_lines(rows: Sequence[AttackRecord]) -> list[str]:
    """The first words or prompts that each row has found."""
    return [
        f"{label_of(row)} ({row.concept}): " + "; ".join(f"`{f}`" for f in row.found[:FOUND_SHOWN])
        for row in rows
        if row.found
    ]


def attacks_note(record: AttacksRecord) -> str:
    """How to read the table."""
    return (
        "Images in which the detector finds the concept with a probability of "
        f"{record.threshold} or more; in brackets the 95 % Wilson interval. Attacked: the erased model "
        "under the attack. No attack, original: the erased and the original model on the same "
        "captions that name the concept, with the same seeds. Original, same input: the original "
        "model on what the attack found, in half as many images. Reads: what the attack has access "
        "to, only images (black box), also the original's text encoder (original), or the erased "
        "weights (white box). A new word and a state behind the encoder are baselines, not attacks. A "
        "rate says what these attacks reached with their budgets, not what a stronger one would. "
        f"Detector: {record.detector} (sha256 {record.detector_sha256[:12]})."
    )


def attacks_markdown(run: str, record: AttacksRecord) -> str:
    """The table in Markdown, what the attacks have found, and the note."""
    table = markdown_table(ATTACK_HEADINGS, attack_lines(record.rows), text_columns=3)
    found = [f"- {line}" for line in found_lines(record.rows)]
    parts = [f"# Attacks on {run}", table]
    parts += ["Found:\n\n" + "\n".join(found)] if found else []
    return "\n\n".join([*parts, attacks_note(record)]) + "\n"
