"""The caption pairs in a folder, in whichever format it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .cifar100 import find_cifar100, read_cifar100
from .class_folders import read_class_folders
from .concept import Concept
from .dataset import Dataset
from .flickr30k import has_captions, read_flickr30k
from .formats import FORMATS
from .sampled import read_shards
from .shards import shards_in


def read_dataset(folder: Path, concepts: Sequence[Concept] = ()) -> Dataset:
    """Flickr30K in any of its formats, CIFAR-100, webdataset shards, or one folder of images per class.

    Shards may hold more images than fit into memory, so both those that mention one of the `concepts`
    and the others are sampled (`sampled.MOST_IMAGES`). Raises DataError if the folder holds none of these
    formats, or files are damaged.
    """
    if has_captions(folder):
        return read_flickr30k(folder)
    if cifar := find_cifar100(folder):
        return read_cifar100(cifar)
    if shards := shards_in(folder):
        return read_shards(folder, shards, concepts)
    try:
        return read_class_folders(folder)
    except DataError as error:
        if error.field:
            raise
        raise DataError(
            f"holds no caption pairs; needs Flickr30K ({', '.join(FORMATS)}), CIFAR-100, *.tar shards, "
            "or at least two folders of images, each named after its class",
            field="data",
            value=folder,
        ) from None
