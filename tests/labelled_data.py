"""Small image folders in every format of a gallery: CIFAR-100 in both versions, shards, class folders."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES = [f"thing_{i}" for i in range(98)] + ["apple", "sweet_pepper"]
APPLE, PEPPER = 98, 99


def cifar_images(count: int) -> NDArray[np.uint8]:
    """Images as rows of 3,072 bytes: planes of red, green and blue."""
    return np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Pickles as Python 2's cPickle did: protocol 2, all text as byte strings."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_array(self, value: NDArray[np.uint8]) -> None:
        kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        self.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01")
        self.save(value.shape)
        self.write(kind + pickle.NEWFALSE)
        self.save_bytes(value.tobytes())
        self.write(b"tb")

    dispatch[bytes] = save_bytes
    dispatch[np.ndarray] = save_array


def python2(value: Any) -> bytes:
    out = io.BytesIO()
    Python2(out, 2).dump(value)
    return out.getvalue()


def write_cifar_python(folder: Path, labels: list[int]) -> NDArray[np.uint8]:
    """Writes `test` and `meta` into `cifar-100-python`; returns the images, (n, 3072)."""
    place = folder / "cifar-100-python"
    place.mkdir(parents=True)
    data = cifar_images(len(labels))
    batch = {b"batch_label": b"testing batch 1 of 1", b"fine_labels": labels, b"data": data}
    (place / "test").write_bytes(python2(batch))
    names = [name.encode() for name in NAMES]
    (place / "meta").write_bytes(python2({b"fine_label_names": names}))
    return data


def write_cifar_binary(folder: Path, labels: list[int]) -> NDArray[np.uint8]:
    """Writes the binary version into `folder` itself; returns the images, (n, 3072)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = cifar_images(len(labels))
    records = (bytes([7, label]) + row.tobytes() for label, row in zip(labels, data, strict=True))
    (folder / "test.bin").write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n")
    return data


def jpeg(shade: int) -> bytes:
    """The bytes of a JPEG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 255 - shade, 80)).save(out, "JPEG")
    return out.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """Writes a tar of the files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(captions: list[str], first: int = 0) -> dict[str, bytes]:
    """`key.jpg` and `key.txt` for each caption, as a shard has them."""
    files = {}
    for number, caption in enumerate(captions, first):
        files[f"{number:05}.jpg"] = jpeg(number % 256)
        files[f"{number:05}.txt"] = caption.encode()
    return files


def write_class_folders(folder: Path, counts: dict[str, int]) -> None:
    """Writes one folder per class, with that many images."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.jpg").write_bytes(jpeg(40 * number + i))
