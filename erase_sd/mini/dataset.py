"""The miniature world's caption pairs, in Flickr30K's own layout, in the user's cache."""

from __future__ import annotations

import json
from pathlib import Path

from ..data.flickr30k import IMAGE_FOLDER, TOKEN_FILE
from ..files import cache_folder, whole_folder
from .captions import captions
from .scenes import render, sample

DATASET_SEED = 20_000_000  # scenes DATASET_SEED + i are the dataset; nothing trains on them
IMAGES = 4_000
VERSION = 1  # raised whenever a stroke or a word changes


def dataset(images: int = IMAGES) -> Path:
    """The dataset's folder; written on the first call, about 8 s for 4,000 images."""
    folder = cache_folder() / f"mini-flickr30k-v{VERSION}-{images}"
    if not folder.exists():
        with whole_folder(folder) as partial:
            write(partial, images)
    return folder


def write(folder: Path, images: int) -> None:
    """Writes `images` scenes: JPEGs, captions as Flickr30K writes them, and `boxes.jsonl`.

    The boxes (class, xyxy, pixels) are ground truth for checks; no reader of pairs looks at them.
    """
    (folder / IMAGE_FOLDER).mkdir()
    lines, boxes = [], []
    for i in range(images):
        scene = sample(DATASET_SEED + i)
        image, found = render(scene)
        name = f"{3_000_000_000 + i}.jpg"
        image.save(folder / IMAGE_FOLDER / name, quality=95, subsampling=0)
        for n, text in enumerate(captions(scene)):
            lines.append(f"{name}#{n}\t{text[0].upper()}{text[1:]} .\n")
        boxes.append(json.dumps({"image": name, "boxes": found}) + "\n")
    (folder / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")
    (folder / "boxes.jsonl").write_text("".join(boxes), encoding="utf-8")
