"""Images that an evaluation measures: the run's held-out pairs, or a folder in one of three formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.cifar100 import find_cifar100, read_cifar100
from ...data.class_folders import read_class_folders
from ...data.concept import Concept
from ...data.shards import shards_in
from ...errors import DataError
from .gallery import Gallery, GalleryImage, labelled_gallery
from .held_out import HELD_OUT, held_out_gallery
from .shards import shard_gallery

__all__ = ["HELD_OUT", "Gallery", "GalleryImage", "held_out_gallery", "open_gallery"]


def open_gallery(folder: Path, concepts: Sequence[Concept]) -> Gallery:
    """CIFAR-100's test split, webdataset shards, or one folder per class, whichever `folder` contains.

    Raises DataError if it contains none of them, if files are damaged, or if no class or caption
    names a concept.
    """
    if not folder.is_dir():
        raise DataError("no such folder", field="images", value=folder)
    if cifar := find_cifar100(folder):
        return labelled_gallery(read_cifar100(cifar, ("test",)), concepts)
    if shards := shards_in(folder):
        return shard_gallery(folder, shards, concepts)
    try:
        return labelled_gallery(read_class_folders(folder), concepts)
    except DataError as error:
        if error.field:
            raise
        raise DataError(
            "needs CIFAR-100, *.tar shards, or at least two folders of images, each named after its "
            "class",
            field="images",
            value=folder,
        ) from None
