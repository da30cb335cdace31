"""Whole-or-nothing files, hashes, and writers of JSON, JSON lines and CSV."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import getpass
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError

from .errors import RunError, reason

PARTIAL = ".partial"
"""Suffix of files and folders that are still being written."""


def cache_folder() -> Path:
    """Where datasets, image features and the original's images are kept between runs.

    `ERASE_SD_CACHE` if set, else `erase-sd` in the user's cache folder, or, for a user without a home
    folder, in the system's folder for temporary files; RunError if another user can write to the latter.
    """
    try:
        if own := os.environ.get("ERASE_SD_CACHE"):
            return Path(own).expanduser()  # not by a shell where an ENV line or a .env file sets it
        own_cache = platformdirs.user_cache_path("erase-sd", appauthor=False)
    except RuntimeError:  # no home folder; some releases return a `~` instead
        own_cache = Path("~")
    if own_cache.is_absolute():
        return own_cache
    return _temporary_cache()


def _temporary_cache() -> Path:
    """A cache for this user alone among the temporary files, where everyone may write."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"erase-sd-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if hasattr(os, "getuid") and (state.st_uid != user or state.st_mode & 0o022):
        raise RunError(
            f"{folder}: another user can write there; set ERASE_SD_CACHE to another folder"
        )
    return folder


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def key_of(value: Any) -> str:
    """A short hash of any JSON value; the order of keys does not matter."""
    return digest(json.dumps(value, sort_keys=True).encode())[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; computed once per unchanged file.

    RunError if it is not a regular file: reading a pipe may block forever.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise RunError(f"{path}: not a regular file")
    times = state.st_mtime_ns, state.st_ctime_ns  # the second cannot be set back
    return _hash_file(path.absolute(), state.st_ino, state.st_size, *times)


@functools.lru_cache(maxsize=1 << 16)
def _hash_file(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces `path` at the end, or is removed on an error.

    Readers see the old bytes or the new ones, never a mixture. A link stays, and what it points to is
    replaced. Raises RunError for a device, a pipe or a folder, and if safetensors cannot write the file;
    an OSError names `path`.
    """
    if path.exists() and not path.is_file():  # /dev/null would become a file for everyone
        raise RunError(f"{path}: not a regular file, cannot be replaced")
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _errors_naming(path):
        handle, name = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            _sync(partial)
            partial.chmod(0o644)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Has errors about what is written beside `path` name `path`, which the user knows; a full disk
    names no file."""
    beside = str(path.with_name(f".{path.name}.").resolve())  # tempfile names absolute paths
    try:
        yield
    except SafetensorError as error:
        raise RunError(f"{path}: cannot be written ({reason(error)})") from None
    except OSError as error:
        if error.filename is None or str(Path(str(error.filename)).resolve()).startswith(beside):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded in UTF-8: half a surrogate pair, which JSON can escape, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8; RunError for text that cannot be encoded, as in some foreign file names."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - 40) : error.end + 10]
        raise RunError(f"{path}: cannot be written, {part!r} is not UTF-8") from None
    write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Writes dataclasses as JSON lines."""
    write_text(path, json_lines(records))


def json_lines(records: Iterable[Any]) -> str:
    """Dataclasses as JSON lines; NaN and infinity raise ValueError."""
    lines = (
        json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False)
        for record in records
    )
    return "".join(f"{line}\n" for line in lines)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a header; None becomes an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that replaces `path` at the end, or is removed on an error.

    Raises RunError if safetensors cannot write into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.replace(path)  # killed between the two renames of `_put_in_place`
    with _errors_naming(path):
        partial = Path(tempfile.mkdtemp(PARTIAL, f".{path.name}.", path.parent))
        try:
            yield partial
            for path_inside in partial.rglob("*"):
                path_inside.chmod(0o755 if path_inside.is_dir() else 0o644)
                _sync(path_inside)
            partial.chmod(0o755)
            _sync(partial)
            _put_in_place(partial, path, old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, path: Path, old: Path) -> None:
    """Renames `partial` to `path`; the folder there now becomes `old` first, and comes back on an error
    or a signal."""
    try:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        partial.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flushes a file, or a folder's entries, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_space(folder: Path, needed: float) -> None:
    """Raises RunError if the disk that `folder` is or will be on has less than `needed` bytes free."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise RunError(
            f"{folder}: needs about {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free on its disk"
        )


def check_writable(folder: Path) -> None:
    """Creates `folder`; raises RunError if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from None
