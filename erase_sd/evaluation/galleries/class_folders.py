"""Labelled images in one folder per class, named after it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from ...data.concept import Concept
from ...data.images import IMAGE_SUFFIXES, open_image
from ...errors import DataError
from ...files import hash_file, key_of
from ...runtime import log
from .gallery import Gallery, labelled_gallery


def _is_readable(path: Path) -> bool:
    try:
        open_image(path)
    except DataError:
        return False
    return True


def read_class_folders(folder: Path, concepts: Sequence[Concept]) -> Gallery:
    """The images in the sub-folders of `folder`. Raises DataError unless at least two have images."""
    inside = [
        path
        for path in sorted(folder.glob("*/*"))
        if not path.parent.name.startswith((".", "__MACOSX")) and not path.name.startswith(".")
    ]
    named = [path for path in inside if path.name.lower().endswith(IMAGE_SUFFIXES)]
    images = [path for path in named if _is_readable(path)]
    if len(images) < len(named):
        count, first = len(named) - len(images), min(set(named) - set(images))
        log.warning("%s: %d unreadable images are left out, first %s", folder, count, first)
    if len({path.parent for path in images}) < 2:
        raise DataError(
            "needs CIFAR-100, *.tar shards, or at least two folders of images, each named after its "
            "class",
            field="images",
            value=folder,
        )
    hashes = [[str(path.relative_to(folder)), hash_file(path)] for path in images]
    labelled = [
        (path.parent.name.replace("_", " "), functools.partial(open_image, path)) for path in images
    ]
    return labelled_gallery("one folder per class", folder, key_of(hashes), labelled, concepts)
