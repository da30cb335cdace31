"""A contact sheet: the original's images in the first row, each run's erased images below them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.images import open_image
from ..errors import RunError, SettingError
from ..files import write_bytes
from ..run import Run
from ..run.measurements import AttackImage
from ..run.records import ImageRecord

MARGIN, GAP = 4, 2  # pixels
SHARED = ("weights", "steps", "guidance", "size", "sampler", "dtype", "scheduler")
"""What the originals of all runs on a sheet have in common."""
MAX_COLUMNS, MAX_SCALE = 500, 16
MAX_PIXELS = 200_000_000  # of a sheet; it takes three bytes each


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
    images, one has changed, or the runs were generated from other models or with other settings, and
    SettingError if `columns` or `scale` is out of bounds.
    """
    if not runs:
        raise SettingError("needs at least one run", field="run")
    for field, value, most in (("columns", columns, MAX_COLUMNS), ("scale", scale, MAX_SCALE)):
        if not 1 <= value <= most:
            raise SettingError(f"needs 1 to {most}, got {value}", field=field)
    for run in runs:
        run.generated()
    tables = [run.images() for run in runs]
    originals = _first_of_each_prompt(tables[0])[:columns]
    if not originals:
        raise RunError(f"{runs[0].folder}: has no image of the original; generate again")
    rows = [("original", opened(runs[0], originals))]
    for run, name, images in zip(runs, names or [r.name for r in runs], tables, strict=True):
        erased = _erased_records(run, images, originals)
        rows.append((name, opened(run, erased)))
    write_bytes(out, grid_png(rows, scale))
    return out


def _first_of_each_prompt(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    first: dict[str, ImageRecord] = {}
    for image in images:
        if image.variant == "original":
            first.setdefault(image.prompt, image)
    return list(first.values())


def opened(run: Run, images: Iterable[ImageRecord | AttackImage]) -> list[Image.Image]:
    """Images of a run; RunError if one is not the one that was generated."""
    return [open_image(run.folder / image.file, run.image_bytes(image)) for image in images]


def _erased_records(
    run: Run, images: Sequence[ImageRecord], originals: Sequence[ImageRecord]
) -> list[ImageRecord]:
    """The run's erased image for the prompt and seed of each original."""
    erased = {(i.prompt, i.seed): i for i in images if i.variant == "erased"}
    own = {(i.prompt, i.seed): i for i in images if i.variant == "original"}
    for original in originals:
        key = original.prompt, original.seed
        if key not in erased or key not in own:
            raise RunError(
                f"{run.folder}: no image of {original.prompt!r} with seed {original.seed}; generate "
                "the same prompts and seeds for every run"
            )
        for name in SHARED:
            first, other = getattr(original, name), getattr(own[key], name)
            if first != other:
                raise RunError(
                    f"{run.folder}: its original has {name} {other}, that of the first run {first}; "
                    "generate with the same model and settings for every run"
                )
    return [erased[original.prompt, original.seed] for original in originals]


def label_lines(label: str) -> str:
    """A label in short lines: a name breaks after its first hyphen, and each setting has its own line."""
    name, *settings = re.split("[:,]", label)
    return "\n".join((name.replace("-", "-\n", 1), *settings))


def grid_png(images: Sequence[tuple[str, Sequence[Image.Image]]], scale: int = 1) -> bytes:
    """A PNG of labelled rows of as many images each, all of one size, which `scale` enlarges."""
    width, height = (length * scale for length in images[0][1][0].size)
    columns, font = len(images[0][1]), ImageFont.load_default(13)
    labels = [label_lines(label) for label, _ in images]
    lines = [line for label in labels for line in label.split("\n")]
    label_width = round(max(font.getlength(line) for line in lines)) + 3 * MARGIN
    size = (
        label_width + columns * (width + GAP) + MARGIN,
        2 * MARGIN + len(images) * (height + GAP),
    )
    if size[0] * size[1] > MAX_PIXELS:
        raise SettingError(
            f"gives a sheet of {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}; needs less",
            field="scale", value=scale,
        )  # fmt: skip
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
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()
