"""CIFAR-100 (Krizhevsky 2009) as distributed: the Python version's pickles, or the binary version.

The pickles are read as `erase_sd.models.unpickle` reads a detector's: nothing that they name is called.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.concept import Concept
from ...errors import DataError
from ...files import hash_file, key_of
from ...models.unpickle import Inert, checked_pickle
from .gallery import Gallery, labelled_gallery

WIDTH = 32  # pixels; images are square
IMAGE_BYTES = 3 * WIDTH * WIDTH  # planes of red, green and blue, each row by row
RECORD_BYTES = 2 + IMAGE_BYTES  # of the binary version: coarse label, fine label, image
CLASS_COUNT = 100
VERSIONS = {
    "python": ("test", "meta"),
    "binary": ("test.bin", "fine_label_names.txt"),
}
# The globals in an array that numpy 1 pickled under Python 2.
ARRAY_GLOBALS = {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}


def find_cifar100(folder: Path) -> Path | None:
    """Where CIFAR-100 lies: `folder`, or the folder inside it that the archive unpacks to."""
    for place in (folder, folder / "cifar-100-python", folder / "cifar-100-binary"):
        if any((place / name).is_file() for names in VERSIONS.values() for name in names):
            return place
    return None


def read_cifar100(folder: Path, concepts: Sequence[Concept]) -> Gallery:
    """The test split in `folder`. Raises DataError if a file is missing or damaged."""
    version = next(v for v, names in VERSIONS.items() if any((folder / n).is_file() for n in names))
    test, meta = paths = [folder / name for name in VERSIONS[version]]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: missing; CIFAR-100's {version} version needs it")
    read = _read_python if version == "python" else _read_binary
    names, labels, data = read(test, meta)
    if len(set(names)) != CLASS_COUNT:
        raise DataError(f"{meta}: damaged, {len(set(names))} class names; needs {CLASS_COUNT}")
    if len(data) != IMAGE_BYTES * len(labels) or not labels:
        raise DataError(
            f"{test}: damaged, {len(data)} bytes for {len(labels)} images; needs {IMAGE_BYTES} each"
        )
    wrong = next((label for label in labels if label not in range(CLASS_COUNT)), None)
    if wrong is not None:
        raise DataError(f"{test}: damaged, a label is {wrong}; needs 0 to {CLASS_COUNT - 1}")
    planes = np.frombuffer(data, np.uint8).reshape(-1, 3, WIDTH, WIDTH)
    labelled = [
        (names[label].replace("_", " "), functools.partial(Image.fromarray, pixels))
        for label, pixels in zip(labels, planes.transpose(0, 2, 3, 1), strict=True)
    ]
    digest = key_of(list(map(hash_file, paths)))
    return labelled_gallery("CIFAR-100, test", folder, digest, labelled, concepts)


def _read_binary(test: Path, meta: Path) -> tuple[list[str], list[int], bytes]:
    """Class names, labels and image bytes of the binary version."""
    raw = test.read_bytes()
    if len(raw) % RECORD_BYTES:
        raise DataError(f"{test}: damaged, {len(raw)} bytes; needs a multiple of {RECORD_BYTES}")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD_BYTES)
    names = meta.read_text(encoding="ascii", errors="replace").split()
    return names, records[:, 1].tolist(), records[:, 2:].tobytes()


def _read_python(test: Path, meta: Path) -> tuple[list[str], list[int], bytes]:
    """Class names, labels and image bytes of the Python version."""
    try:
        names = [name.decode() for name in _unpickle(meta)[b"fine_label_names"]]
        batch = _unpickle(test)
        array, labels = batch[b"data"], batch[b"fine_labels"]
        _, _, kind, fortran, data = array.state
        if kind.args[0] != b"u1" or fortran or not all(type(label) is int for label in labels):
            raise ValueError("needs images as bytes in row order and labels as integers")
        return names, list(labels), bytes(data)
    except DataError:
        raise
    except Exception as error:  # foreign bytes can raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{test.parent}: test or meta is damaged ({why})") from None


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data, and the parts of an array as `Inert` objects."""

    def find_class(self, module: str, name: str) -> type[Inert]:
        full = f"{module}.{name}"
        if full not in ARRAY_GLOBALS:
            raise DataError(f"names {full[:80]}, which CIFAR-100 does not contain; refused")
        return type("Inert", (Inert,), {"__slots__": (), "name": full})


def _unpickle(path: Path) -> Any:
    try:
        return _PlainUnpickler(checked_pickle(path.read_bytes()), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
