"""What an evaluation looks at: the run's held-out pairs, or a folder recognised by what lies there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.concept import Concept
from ...data.flickr30k import IMAGE_SUFFIXES
from ...data.split import ranked
from ...errors import DataError
from ...files import hash_file, key_of
from ...models.clip import Clip, open_image
from ...models.presets import Models
from ...run import Run
from ...unlearning.captions import image_features
from ...unlearning.pairs import sides_of
from . import cifar100, shards
from .gallery import Gallery as Gallery
from .gallery import Picture as Picture
from .gallery import Side as Side
from .gallery import choose, of_captions, of_classes

HELD_OUT = "the run's held-out pairs"
"""The kind of an evaluation's pictures, where they are these."""


def held_out(run: Run, models: Models, concepts: tuple[Concept, ...]) -> Gallery:
    """The run's own held-out images, at most MOST of them.

    Raises RunError where the pairs are no longer those that it was unlearned with.
    """
    data, sides = sides_of(run, models)
    parts = [side["held-out"] for side in (sides.forget, sides.retain)]
    items = choose(*(ranked(part) for part in parts))
    about: dict[str, Any] = {
        "kind": HELD_OUT, "folder": str(data.folder), "digest": data.digest,
        "held_out": sum(map(len, parts)),
    }  # fmt: skip

    def cached(clip: Clip) -> Tensor:
        table = image_features(clip, data, items)
        return torch.stack([table[item.image] for item in items])

    opened = [(i.captions, functools.partial(open_image, data.path_of(i))) for i in items]
    return of_captions(about, opened, concepts, cached)


def open_folder(folder: Path, concepts: Sequence[Concept]) -> Gallery:
    """CIFAR-100, webdataset shards, or a folder for each class, whichever lies in `folder`.

    Raises DataError where none of them does, where files are damaged, and where a concept is in
    none of the classes or captions.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder")
    if place := cifar100.find(folder):
        data = cifar100.read(place)
        about = {"kind": "CIFAR-100, test", "folder": str(place), "digest": data.digest}
        return of_classes(
            about, [(name, functools.partial(data.image, i)) for i, name in data], concepts
        )
    if tars := sorted(folder.glob("*.tar")):
        return shards.read(folder, tars, concepts)
    return _class_folders(folder, concepts)


def _class_folders(folder: Path, concepts: Sequence[Concept]) -> Gallery:
    """A folder for each class, named after it, with its images."""
    inside = [path for path in sorted(folder.glob("*/*")) if not path.parent.name.startswith(".")]
    images = [path for path in inside if path.name.lower().endswith(IMAGE_SUFFIXES)]
    if len({path.parent for path in images}) < 2:
        raise DataError(
            f"--images {folder}: needs CIFAR-100, *.tar shards, or two folders of images or more, "
            "each named after its class"
        )
    hashes = [[str(path.relative_to(folder)), hash_file(path)] for path in images]
    about = {"kind": "a folder a class", "folder": str(folder), "digest": key_of(hashes)}
    labelled = [
        (path.parent.name.replace("_", " "), functools.partial(open_image, path)) for path in images
    ]
    return of_classes(about, labelled, concepts)
