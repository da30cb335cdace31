"""Images that an evaluation measures: the run's held-out pairs, or a folder in one of three formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.concept import Concept
from ...errors import DataError
from .cifar100 import find_cifar100, read_cifar100
from .class_folders import read_class_folders
from .gallery import Gallery, GalleryImage
from .held_out import HELD_OUT, held_out_gallery
from .shards import read_shards

__all__ = ["HELD_OUT", "Gallery", "GalleryImage", "held_out_gallery", "open_gallery"]


def open_gallery(folder: Path, concepts: Sequence[Concept]) -> Gallery:
    """CIFAR-100, webdataset shards, or one folder per class, whichever `folder` contains.

    Raises DataError if it contains none of them, if files are damaged, or if no class or caption
    names a concept.
    """
    if not folder.is_dir():
        raise DataError("no such folder", field="images", value=folder)
    if cifar := find_cifar100(folder):
        return read_cifar100(cifar, concepts)
    if shards := sorted(folder.glob("*.tar")):
        return read_shards(folder, shards, concepts)
    return read_class_folders(folder, concepts)
