"""The ladder for a model card: its table, and a picture of each rung, original above erased."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..attacks.table import label_of
from ..data.concept import slug
from ..files import write_bytes
from ..run import Run
from ..run.records import ImageRecord
from ..scoring.table import markdown_table
from .contact_sheet import grid_png, opened
from .data import ReportData, read_report_data
from .ladder import LADDER_HEADINGS, attack_rows, ladder_lines

COLUMNS = 8
"""Images of each row."""
WIDTH = 128
"""Width of an image in pixels; larger ones are reduced."""
RUNGS = ("plain", "synonym", "name-free", "look-alike", "other-sense")


def ladder_section(run: Run, folder: Path) -> str:
    """Writes the pictures into `folder` and returns Markdown with the ladder and links to them.

    Empty before scoring.
    """
    data = read_report_data(run)
    lines = ladder_lines(data)
    if not lines:
        return ""
    pictures = [link for concept in data.concepts for link in _pictures(data, concept.name, folder)]
    table = markdown_table(LADDER_HEADINGS, lines, text_columns=1)
    return "\n".join(["## From the name to attacks", "", table, "", *pictures]).strip()


def _pictures(data: ReportData, concept: str, folder: Path) -> list[str]:
    """A paragraph for each rung that has images."""
    paragraphs = []
    for kind in RUNGS:
        words = "prompts that name it" if kind == "plain" else f"{kind} prompts"
        rows = [
            (variant, _images(data, concept, kind, variant)) for variant in ("original", "erased")
        ]
        paragraphs += _paragraph(folder, f"{slug(concept)}-{kind}", f"{concept}: {words}", rows)
    for row in attack_rows(data, concept):
        paragraphs += _paragraph(
            folder,
            f"{slug(concept)}-attack-{slug(f'{row.attack} {row.row}')}",
            f"{concept}: attack, {label_of(row)}",
            [("erased", opened(data.run, row.images[:COLUMNS]))],
        )
    return paragraphs


def _images(data: ReportData, concept: str, kind: str, variant: str) -> list[Image.Image]:
    """The first image of each of the rung's first prompts."""
    own: dict[str, ImageRecord] = {}
    for image in data.images:
        about = image.pair.concept == concept or concept in image.pair.mentions
        if image.variant == variant and image.pair.kind == kind and about:
            own.setdefault(image.prompt, image)
    return opened(data.run, list(own.values())[:COLUMNS])


def _paragraph(
    folder: Path, name: str, title: str, rows: Sequence[tuple[str, list[Image.Image]]]
) -> list[str]:
    """Writes one picture; its link in Markdown, or nothing if there are no images."""
    if not all(images for _, images in rows):
        return []
    for _, images in rows:
        for image in images:
            image.thumbnail((WIDTH, WIDTH))
    write_bytes(folder / f"{name}.png", grid_png(rows))
    return [
        f"{title}.",
        "",
        f"![{title}: {', '.join(label for label, _ in rows)}]({folder.name}/{name}.png)",
        "",
    ]
