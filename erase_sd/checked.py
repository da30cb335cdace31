"""Hashes of folders; folders and files that carry their own checksums, so that damage is detected."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from .errors import RunError, reason
from .files import (
    PARTIAL,
    digest,
    hash_file,
    key_of,
    whole_file,
    whole_folder,
    write_bytes,
    write_records,
)
from .reading import check_regular, read_bytes, read_records
from .runtime import log

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.jsonl"
CHECKSUM_BYTES = 64  # a SHA-256 in hexadecimal
ANOTHER_CACHE = "set ERASE_SD_CACHE to another folder"
NO_LOCKS = "its file system has no locks, which keep two processes from writing at once"


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One file of a folder, by its path within it."""

    file: str
    size: int
    """Bytes."""
    sha256: str


def hash_folder(folder: Path, *patterns: str) -> str:
    """One hash of the names and bytes of all files in `folder`, at any depth, that match a pattern.

    Links to folders are followed; hidden files are left out.
    """
    files = walk_files(folder)
    return hash_files(
        folder, [p for p in files if any(fnmatch.fnmatchcase(p.name, each) for each in patterns)]
    )


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """One hash of the names and bytes of some files in `folder`, in whatever order they come."""
    return key_of([[str(p.relative_to(folder)), hash_file(p)] for p in sorted(files)])


def walk_files(folder: Path) -> Iterator[Path]:
    """All files in `folder`, at any depth, also behind links; none that are hidden (`._1.jpg`), nor
    those of `__MACOSX`, which archives from a Mac contain."""
    visited: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        state = Path(root).stat()
        if (state.st_dev, state.st_ino) in visited:  # a link back
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        paths = (Path(root, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def cached_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """`path` as `write` fills it: now, unless an earlier call did and every file is still intact.

    The manifest with sizes and hashes is written last. A folder that does not match it is made again;
    of several processes one writes and the others wait.
    """
    if is_intact(path):
        return path
    with _sole_writer(path):
        if not is_intact(path):
            if path.exists():
                log.warning("%s: incomplete or damaged, made again", path)
            with whole_folder(path) as partial:
                write(partial)
                write_records(partial / MANIFEST, _entries(partial))
    return path


def is_intact(folder: Path) -> bool:
    """Whether a folder holds exactly the files of its manifest, each with its size and hash."""
    try:
        expected = read_records(folder / MANIFEST, ManifestEntry)
        return bool(expected) and expected == _entries(folder)
    except (OSError, RunError):
        return False


def _entries(folder: Path) -> list[ManifestEntry]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return [
        ManifestEntry(
            file=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=hash_file(path),
        )
        for path in files
    ]


@contextlib.contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    """Holds a lock beside `path`, and removes what a killed writer left there."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except NotImplementedError:
        raise RunError(f"{path.parent}: {NO_LOCKS}; {ANOTHER_CACHE}") from None
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise RunError(f"{path.parent}: {why}; {ANOTHER_CACHE}") from None
    with lock:
        sweep(path.parent, path.name)
        yield


def sweep(folder: Path, name: str = "*", keep: str = "") -> None:
    """Removes what killed writers left beside files and folders of that name, except `keep`, which
    only the one process may do that writes there; an old folder without a new one takes its place
    again."""
    name = name if name == "*" else glob.escape(name)
    for old in folder.glob(f".{name}.old"):
        current = folder / old.name[1:].removesuffix(".old")
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(current)
    for partial in folder.glob(f".{name}.*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif not keep or not partial.name.startswith(f".{keep}."):
            partial.unlink(missing_ok=True)


def save_bytes(path: Path, data: bytes) -> None:
    """Writes a file of the cache with a checksum of its name and bytes, whole or not at all."""
    write_bytes(path, _checksum_of_bytes(path, data) + data)


def load_bytes(path: Path) -> bytes | None:
    """The bytes of `save_bytes`; None if there is no such file, or if it is damaged, which is logged."""
    try:
        stored = read_bytes(path)
    except FileNotFoundError:
        return None
    except RunError as error:
        log.warning("%s", error)
        return None
    checksum, data = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
    if checksum != _checksum_of_bytes(path, data):
        log.warning("%s: damaged, made again", path)
        return None
    return data


def _checksum_of_bytes(path: Path, data: bytes) -> bytes:
    """Covers the file's name too, so that another cache entry in its place is detected."""
    return digest(path.name.encode() + b"\0" + data).encode()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes a safetensors file with `about` and a checksum in its metadata, whole or not at all."""
    from safetensors.torch import save_file

    metadata = {**about, "sha256": _checksum(tensors, about)}
    # save_file instead of bytes in memory: the tensors of a large tower are gigabytes.
    with whole_file(path) as file:
        save_file(dict(tensors), file, metadata=metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of `save_tensors`.

    Raises FileNotFoundError, and RunError if any bit of the file has changed.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: damaged ({reason(error)})") from None
    if about.pop("sha256", None) != _checksum(tensors, about):
        raise RunError(f"{path}: damaged (its checksum does not match)")
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of metadata, and of name, type, shape and bytes of every tensor."""
    import torch

    sha256 = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha256.update(flat.view(torch.uint8).numpy().data)
    return sha256.hexdigest()
