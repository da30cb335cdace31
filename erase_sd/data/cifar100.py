"""CIFAR-100 (Krizhevsky 2009) as distributed: the Python version's pickles, or the binary version.

The pickles are read as a detector's are: nothing that they name is called.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..files import digest
from .classes import LabelledImage, class_name, labelled_dataset
from .dataset import Dataset
from .images import Entry
from .pickles import Inert, checked_pickle

WIDTH = 32  # pixels; images are square
IMAGE_BYTES = 3 * WIDTH * WIDTH  # planes of red, green and blue, each row by row
RECORD_BYTES = 2 + IMAGE_BYTES  # of the binary version: coarse label, fine label, image
CLASS_COUNT = 100
FILES = ("train", "test")
"""The files of images; either may be missing."""
# The globals in an array that numpy 1 pickled under Python 2.
ARRAY_GLOBALS = {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}


class Version(NamedTuple):
    """A version of the dataset."""

    name: str
    suffix: str
    """Suffix of the image files."""
    classes: str
    """The file of class names."""


VERSIONS = (
    Version("python", "", "meta"),
    Version("binary", ".bin", "fine_label_names.txt"),
)


class Pixels(NamedTuple):
    """The images of one file."""

    labels: list[int]
    starts: Sequence[int]
    """Where each image begins in the file."""
    size: int
    """Bytes of all images."""


def find_cifar100(folder: Path) -> Path | None:
    """Where CIFAR-100 lies: `folder`, or the folder inside it that the archive unpacks to."""
    for place in (folder, folder / "cifar-100-python", folder / "cifar-100-binary"):
        if any(_is_version(place, version) for version in VERSIONS):
            return place
    return None


def _is_version(place: Path, version: Version) -> bool:
    """Whether one of the files is there that only this dataset has; others have a `train`, too."""
    return any((place / n).is_file() for n in (f"test{version.suffix}", version.classes))


def holds_test(place: Path) -> bool:
    """Whether the dataset in `place`, where `find_cifar100` has found it, includes the test images."""
    return any((place / f"test{version.suffix}").is_file() for version in VERSIONS)


def read_cifar100(folder: Path, files: Sequence[str] = FILES) -> Dataset:
    """The images in `folder`, where `find_cifar100` has found it, of those of FILES that are named.

    Of several files one may be missing. Raises DataError if a file is missing or damaged.
    """
    version = next(v for v in VERSIONS if _is_version(folder, v))
    paths = [folder / f"{name}{version.suffix}" for name in files]
    present = [path for path in paths if path.is_file()]
    for path in (paths[-1] if not present else present[0], folder / version.classes):
        if not path.is_file():
            raise DataError(f"{path}: missing; CIFAR-100's {version.name} version needs it")
    names = [class_name(name) for name in _class_names(folder / version.classes, version)]
    if len(set(names)) != CLASS_COUNT:
        raise DataError(
            f"{folder / version.classes}: damaged, {len(set(names))} class names; needs {CLASS_COUNT}"
        )
    images = [image for path in present for image in _images(path, version, names)]
    title = f"CIFAR-100, {' and '.join(path.stem for path in present)}"
    return labelled_dataset(folder, folder, title, images)


def _images(path: Path, version: Version, names: Sequence[str]) -> Iterator[LabelledImage]:
    data = path.read_bytes()
    batch = _python_batch(path, data) if version.name == "python" else _binary_batch(path, data)
    if batch.size != IMAGE_BYTES * len(batch.labels) or not batch.labels:
        raise DataError(
            f"{path}: damaged, {batch.size} bytes for {len(batch.labels)} images; "
            f"needs {IMAGE_BYTES} each"
        )
    wrong = next((label for label in batch.labels if label not in range(CLASS_COUNT)), None)
    if wrong is not None:
        raise DataError(f"{path}: damaged, a label is {wrong}; needs 0 to {CLASS_COUNT - 1}")
    for number, (label, start) in enumerate(zip(batch.labels, batch.starts, strict=True)):
        name = f"{path.stem}/{number:05}"
        sha256 = digest(data[start : start + IMAGE_BYTES])
        entry = Entry(name, path, start, IMAGE_BYTES, sha256, width=WIDTH)
        yield LabelledImage(name, names[label], entry)


def _class_names(path: Path, version: Version) -> list[str]:
    if version.name == "binary":
        return path.read_text(encoding="ascii", errors="replace").split()
    try:
        return [name.decode() for name in _unpickle(path, path.read_bytes())[b"fine_label_names"]]
    except DataError:
        raise
    except Exception as error:  # foreign bytes can raise anything
        raise _damaged(path, error) from None


def _binary_batch(path: Path, data: bytes) -> Pixels:
    if len(data) % RECORD_BYTES:
        raise DataError(f"{path}: damaged, {len(data)} bytes; needs a multiple of {RECORD_BYTES}")
    starts = range(2, len(data), RECORD_BYTES)
    return Pixels([data[start - 1] for start in starts], starts, IMAGE_BYTES * len(starts))


def _python_batch(path: Path, data: bytes) -> Pixels:
    try:
        batch = _unpickle(path, data)
        array, labels = batch[b"data"], list(batch[b"fine_labels"])
        _, _, kind, fortran, pixels = array.state
        if kind.args[0] != b"u1" or fortran or not all(type(label) is int for label in labels):
            raise ValueError("needs images as bytes in row order and labels as integers")
        first = data.index(bytes(pixels))  # a pickle holds an array's bytes as they are
    except DataError:
        raise
    except Exception as error:  # foreign bytes can raise anything
        raise _damaged(path, error) from None
    starts = range(first, first + IMAGE_BYTES * len(labels), IMAGE_BYTES)
    return Pixels(labels, starts, len(pixels))


def _damaged(path: Path, error: Exception) -> DataError:
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return DataError(f"{path}: damaged ({why})")


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data, and the parts of an array as `Inert` objects."""

    def find_class(self, module: str, name: str) -> type[Inert]:
        full = f"{module}.{name}"
        if full not in ARRAY_GLOBALS:
            raise DataError(f"names {full[:80]}, which CIFAR-100 does not contain; refused")
        return type("Inert", (Inert,), {"__slots__": (), "name": full})


def _unpickle(path: Path, data: bytes) -> Any:
    try:
        return _PlainUnpickler(checked_pickle(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
