"""CIFAR-100 (Krizhevsky 2009) as it is handed out: the Python version's pickles, or the binary one.

The pickles are read as `erase_sd.models.unpickle` reads a detector's: nothing that they name is called.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ...files import hash_file, key_of
from ...models.unpickle import Inert

SIDE = 32  # pixels, width and height of an image
PLANES = 3 * SIDE * SIDE  # bytes of an image: red, green, blue, each row by row
RECORD = 2 + PLANES  # of the binary version: coarse label, fine label, image
CLASSES = 100
FORMS = {
    "python": ("test", "meta"),
    "binary": ("test.bin", "fine_label_names.txt"),
}
# What the array of a numpy 1 under Python 2 is pickled with.
ARRAY = {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}


@dataclass(frozen=True)
class Cifar100:
    """The test images, `pixels` (n, 32, 32, 3) of 0-255, and each one's class by number."""

    names: list[str]
    labels: list[int]
    pixels: NDArray[np.uint8]
    digest: str

    def image(self, number: int) -> Image.Image:
        """The image of that number, RGB."""
        return Image.fromarray(self.pixels[number])

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return ((number, self.names[label]) for number, label in enumerate(self.labels))


def find(folder: Path) -> Path | None:
    """Where CIFAR-100 lies: in `folder`, or in the folder inside it that its archive unpacks to."""
    for place in (folder, folder / "cifar-100-python", folder / "cifar-100-binary"):
        if any((place / name).is_file() for form in FORMS.values() for name in form):
            return place
    return None


def read(folder: Path) -> Cifar100:
    """The test set in `folder`. Raises DataError where a file is missing, damaged, or of other data."""
    form = next(f for f, names in FORMS.items() if any((folder / n).is_file() for n in names))
    paths = [folder / name for name in FORMS[form]]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: missing; CIFAR-100's {form} version has it")
    test, meta = paths
    names, labels, data = _python(test, meta) if form == "python" else _binary(test, meta)
    if len(set(names)) != CLASSES:
        raise DataError(f"{meta}: damaged, {len(set(names))} class names; needs {CLASSES}")
    if len(data) != PLANES * len(labels) or not labels:
        raise DataError(
            f"{test}: damaged, {len(data)} bytes of {len(labels)} images; each needs {PLANES}"
        )
    wrong = next((label for label in labels if label not in range(CLASSES)), None)
    if wrong is not None:
        raise DataError(f"{test}: damaged, a label is {wrong}; needs 0 to {CLASSES - 1}")
    planes = np.frombuffer(data, np.uint8).reshape(-1, 3, SIDE, SIDE)
    words = [name.replace("_", " ") for name in names]
    return Cifar100(
        words, labels, planes.transpose(0, 2, 3, 1), key_of(list(map(hash_file, paths)))
    )


def _binary(test: Path, meta: Path) -> tuple[list[str], list[int], bytes]:
    raw = test.read_bytes()
    if len(raw) % RECORD:
        raise DataError(f"{test}: damaged, {len(raw)} bytes; needs a multiple of {RECORD}")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    names = meta.read_text(encoding="ascii", errors="replace").split()
    return names, records[:, 1].tolist(), records[:, 2:].tobytes()


def _python(test: Path, meta: Path) -> tuple[list[str], list[int], bytes]:
    try:
        names = [name.decode() for name in _unpickled(meta)[b"fine_label_names"]]
        batch = _unpickled(test)
        array, labels = batch[b"data"], batch[b"fine_labels"]
        _, _, kind, fortran, data = array.state
        if kind.args[0] != b"u1" or fortran or not all(type(label) is int for label in labels):
            raise ValueError("its images are no bytes, row by row, or its labels no numbers")
        return names, list(labels), bytes(data)
    except DataError:
        raise
    except Exception as error:  # bytes of a stranger can raise anything
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{test.parent}: test or meta is damaged ({what})") from None


class _Reader(pickle.Unpickler):
    """Plain data, and an `Inert` for what an array is made with."""

    def find_class(self, module: str, name: str) -> type[Inert]:
        full = f"{module}.{name}"
        if full not in ARRAY:
            raise DataError(f"names {full[:80]}, which is no part of CIFAR-100; refused unread")
        return type("Inert", (Inert,), {"__slots__": (), "name": full})


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Reader(file, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
