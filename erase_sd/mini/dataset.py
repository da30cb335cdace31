"""The miniature world's caption pairs: a folder in Flickr30K's layout, in the user's cache."""

from __future__ import annotations

import json
from pathlib import Path

from ..checked import cached_folder
from ..data.flickr30k import IMAGE_FOLDER
from ..data.formats import TOKEN_FILE
from ..files import cache_folder
from .captions import training_captions
from .scenes import render_scene, sample

DATASET_SEED = 20_000_000
"""Seed of the first scene of the dataset; no model is trained on these scenes."""
IMAGES = 4_000
DATASET_VERSION = 1
"""Raised whenever a rendered stroke or a caption changes."""


def dataset(images: int = IMAGES) -> Path:
    """The dataset's folder, written by the first call (about 8 s for 4,000 images)."""
    folder = cache_folder() / f"mini-flickr30k-v{DATASET_VERSION}-{images}"
    return cached_folder(folder, lambda partial: write_dataset(partial, images))


def write_dataset(folder: Path, images: int) -> None:
    """Writes scenes as JPEGs, a token file, and `boxes.jsonl`.

    The boxes (class, xyxy, pixels) are ground truth for checks; no caption reader uses them.
    """
    (folder / IMAGE_FOLDER).mkdir()
    lines, boxes = [], []
    for i in range(images):
        scene = sample(DATASET_SEED + i)
        image, scene_boxes = render_scene(scene)
        name = f"{3_000_000_000 + i}.jpg"
        image.save(folder / IMAGE_FOLDER / name, quality=95, subsampling=0)
        for n, text in enumerate(training_captions(scene)):
            lines.append(f"{name}#{n}\t{text[0].upper()}{text[1:]} .\n")
        boxes.append(json.dumps({"image": name, "boxes": scene_boxes}) + "\n")
    (folder / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")
    (folder / "boxes.jsonl").write_text("".join(boxes), encoding="utf-8")
