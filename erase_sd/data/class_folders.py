"""Labelled images in one folder per class, named after it."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..runtime import log
from .classes import LabelledImage, class_name, labelled_dataset
from .dataset import Dataset
from .images import IMAGE_SUFFIXES


def read_class_folders(folder: Path) -> Dataset:
    """The images in the sub-folders of `folder`. Raises DataError unless at least two have images."""
    images = [
        path
        for path in sorted(folder.glob("*/*"))
        if not path.parent.name.startswith((".", "__MACOSX"))
        and not path.name.startswith(".")
        and path.name.lower().endswith(IMAGE_SUFFIXES)
    ]
    if left_out := [path for path in images if not path.is_file()]:
        log.warning(
            "%s: %d images are not regular files and are left out, first %s",
            folder, len(left_out), left_out[0].relative_to(folder),
        )  # fmt: skip
        images = [path for path in images if path not in left_out]
    if len({path.parent for path in images}) < 2:
        raise DataError(
            f"{folder}: needs at least two folders of images, each named after its class"
        )
    labelled = (
        LabelledImage(path.relative_to(folder).as_posix(), class_name(path.parent.name), path)
        for path in images
    )
    return labelled_dataset(folder, folder, "one folder per class", labelled)
