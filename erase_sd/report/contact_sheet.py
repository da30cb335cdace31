"""Pairs of images as one picture: the original's above, each run's erased ones below."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import RunError, SettingError
from ..files import read_rows, write_bytes
from ..models.clip import open_image
from ..run import Run

MARGIN, GAP = 4, 2  # pixels


def show(
    runs: Sequence[Run],
    out: Path,
    columns: int = 12,
    scale: int = 1,
    names: Sequence[str] = (),
) -> Path:
    """Writes a PNG: a row for the original and one for each run, a column a prompt.

    `names` are what the runs are called, else their own. The prompts are the first ones of the first run, in the order of its file, one image each.
    Raises RunError where a run lacks them, and SettingError for sizes below 1.
    """
    if not runs:
        raise SettingError("--run: needs at least one")
    for name, value in (("columns", columns), ("scale", scale)):
        if value < 1:
            raise SettingError(f"--{name}: needs at least 1, got {value}")
    tables = []
    for run in runs:
        run.require("generate", "generate first")
        tables.append(read_rows(run.folder / "images.jsonl"))
    picked = _first_of_each_prompt(tables[0])[:columns]
    rows = [("original", [runs[0].folder / row["file"] for row in picked])]
    for run, name, table in zip(runs, names or [r.name for r in runs], tables, strict=True):
        made = {(r["prompt"], r["seed"]): r["file"] for r in table if r["arm"] == "erased"}
        try:
            files = [run.folder / made[row["prompt"], row["seed"]] for row in picked]
        except KeyError as error:
            raise RunError(f"{run.folder}: has no image of {error}; generate the same") from None
        rows.append((name, files))
    picture = _grid(rows, scale)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", optimize=True)
    write_bytes(out, encoded.getvalue())
    return out


def _first_of_each_prompt(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for row in table:
        if row["arm"] == "original":
            rows.setdefault(row["prompt"], row)
    return list(rows.values())


def _grid(rows: list[tuple[str, list[Path]]], scale: int) -> Image.Image:
    images = [(label, [open_image(path) for path in files]) for label, files in rows]
    width, height = (side * scale for side in images[0][1][0].size)
    columns, font = len(images[0][1]), ImageFont.load_default(13)
    words = ["\n".join(re.split("[:,]", label.replace("-", "\n", 1))) for label, _ in images]
    beside = round(max(font.getlength(w) for text in words for w in text.split("\n"))) + 3 * MARGIN
    size = (
        beside + columns * (width + GAP) + MARGIN,
        2 * MARGIN + len(images) * (height + GAP),
    )
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, (_, row) in enumerate(images):
        top = MARGIN + i * (height + GAP)
        draw.multiline_text((MARGIN, top + height // 2), words[i], "black", font, anchor="lm")
        for j, image in enumerate(row):
            picture.paste(
                image.resize((width, height), Image.Resampling.BICUBIC),
                (beside + j * (width + GAP), top),
            )
    return picture
