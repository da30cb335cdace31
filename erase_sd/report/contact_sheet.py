"""A contact sheet: the original's images in the first row, each run's erased images below them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.images import open_image
from ..errors import RunError, SettingError
from ..files import write_bytes
from ..run import Run
from ..run.records import ImageRecord

MARGIN, GAP = 4, 2  # pixels


def contact_sheet(
    runs: Sequence[Run],
    out: Path,
    columns: int = 12,
    scale: int = 1,
    names: Sequence[str] = (),
) -> Path:
    """Writes a PNG with one row for the original model, one per run, and one column per prompt.

    `names` label the runs; by default each run's own name does. The columns are the first prompts of
    the first run, in file order, with one image each. Raises RunError if a run lacks one of these
    images, and SettingError if `columns` or `scale` is below 1.
    """
    if not runs:
        raise SettingError("needs at least one run", field="run")
    for field, value in (("columns", columns), ("scale", scale)):
        if value < 1:
            raise SettingError(f"needs at least 1, got {value}", field=field)
    for run in runs:
        run.generated()
    tables = [run.images() for run in runs]
    originals = _first_of_each_prompt(tables[0])[:columns]
    rows = [("original", [runs[0].folder / image.file for image in originals])]
    for run, name, images in zip(runs, names or [r.name for r in runs], tables, strict=True):
        rows.append((name, _erased_files(run, images, originals)))
    encoded = io.BytesIO()
    _grid(rows, scale).save(encoded, "PNG", optimize=True)
    write_bytes(out, encoded.getvalue())
    return out


def _first_of_each_prompt(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    first: dict[str, ImageRecord] = {}
    for image in images:
        if image.variant == "original":
            first.setdefault(image.prompt, image)
    return list(first.values())


def _erased_files(
    run: Run, images: Sequence[ImageRecord], originals: Sequence[ImageRecord]
) -> list[Path]:
    """The run's erased image for the prompt and seed of each original."""
    erased = {(i.prompt, i.seed): run.folder / i.file for i in images if i.variant == "erased"}
    for original in originals:
        if (original.prompt, original.seed) not in erased:
            raise RunError(
                f"{run.folder}: no image of {original.prompt!r} with seed {original.seed}; generate "
                "the same prompts and seeds for every run"
            )
    return [erased[original.prompt, original.seed] for original in originals]


def _grid(rows: Sequence[tuple[str, Sequence[Path]]], scale: int) -> Image.Image:
    images = [(label, [open_image(path) for path in files]) for label, files in rows]
    width, height = (length * scale for length in images[0][1][0].size)
    columns, font = len(images[0][1]), ImageFont.load_default(13)
    labels = ["\n".join(re.split("[:,]", label.replace("-", "\n", 1))) for label, _ in images]
    lines = [line for label in labels for line in label.split("\n")]
    label_width = round(max(font.getlength(line) for line in lines)) + 3 * MARGIN
    size = (
        label_width + columns * (width + GAP) + MARGIN,
        2 * MARGIN + len(images) * (height + GAP),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (_, row) in enumerate(images):
        top = MARGIN + i * (height + GAP)
        draw.multiline_text((MARGIN, top + height // 2), labels[i], "black", font, anchor="lm")
        for j, image in enumerate(row):
            sheet.paste(
                image.resize((width, height), Image.Resampling.BICUBIC),
                (label_width + j * (width + GAP), top),
            )
    return sheet
