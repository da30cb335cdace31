"""Renders the paper's kinds of data: `python -m erase_sd.mini.training.datasets cifar100|cc12m FOLDER`.

`cifar100` has 100 classes, each of the twenty kinds of things in five places, in the format of CIFAR-100's
binary version; `cc12m` has captioned scenes in webdataset shards. No model is trained on these scenes.
"""

from __future__ import annotations

import argparse
import io
import itertools
from pathlib import Path

import numpy as np

from ...data.cifar100 import WIDTH
from ...data.shards import write_shards
from ...files import whole_folder
from ..captions import training_captions
from ..drawing.things import THINGS
from ..scenes import SIZE, render_scene, sample

CLASS_SEED = 60_000_000
"""Seed of the first scene of a class."""
SHARD_SEED = 70_000_000
"""Seed of the first scene in the shards."""
CLASS_PLACES = {
    "kitchen": "in a kitchen",
    "living room": "in a living room",
    "park": "in a park",
    "street": "on a street",
    "beach": "on a beach",
}
"""Places of the classes, and how a class is named after them: `apple_in_a_park`."""
SHARD = 1_000
"""Pairs of a shard."""


def write_cifar100(folder: Path, images: int) -> None:
    """Writes `images` of each class, a sixth of them into `test.bin`, with the lists of names.

    The coarse label is the kind, the fine label the kind in its place.
    """
    classes = list(itertools.product(THINGS, CLASS_PLACES))
    records: dict[str, list[bytes]] = {"train": [], "test": []}
    for number in range(images):
        for fine, (kind, place) in enumerate(classes):
            scene = sample(CLASS_SEED + 10_000 * fine + number, (kind,), place)
            image, _ = render_scene(scene)
            planes = np.asarray(image.reduce(SIZE // WIDTH)).transpose(2, 0, 1)
            record = bytes([list(THINGS).index(kind), fine]) + planes.tobytes()
            records["test" if number % 6 == 5 else "train"].append(record)
    names = {
        "fine": [f"{kind} {CLASS_PLACES[place]}" for kind, place in classes],
        "coarse": list(THINGS),
    }
    with whole_folder(folder) as partial:
        for split, of_split in records.items():
            (partial / f"{split}.bin").write_bytes(b"".join(of_split))
        for level, of_level in names.items():
            lines = [f"{name.replace(' ', '_')}\n" for name in of_level]
            (partial / f"{level}_label_names.txt").write_text("".join(lines), encoding="ascii")


def write_cc12m(folder: Path, pairs: int) -> None:
    """Writes `pairs` captioned scenes, SHARD of them to a shard."""

    def pair(number: int) -> tuple[bytes, str]:
        scene, data = sample(SHARD_SEED + number), io.BytesIO()
        render_scene(scene)[0].save(data, "JPEG", quality=95, subsampling=0)
        return data.getvalue(), training_captions(scene, 1)[0]

    with whole_folder(folder) as partial:
        write_shards(partial, map(pair, range(pairs)), SHARD)


def main() -> None:
    """Writes the named dataset into a new folder."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.datasets", description=__doc__
    )
    parser.add_argument("dataset", choices=["cifar100", "cc12m"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=60, help="images of each class")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs in the shards")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists; needs a new folder")
    if options.dataset == "cifar100":
        write_cifar100(options.folder, options.images)
    else:
        write_cc12m(options.folder, options.pairs)


if __name__ == "__main__":
    main()
