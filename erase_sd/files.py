"""Files appear whole or not at all; hashes tell whether they are still what was written."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import RunError, reason


def cache_folder() -> Path:
    """Where datasets, features and original images are kept between runs.

    `ERASE_SD_CACHE` if set, else `erase-sd` in the user's cache folder.
    """
    if own := os.environ.get("ERASE_SD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erase-sd"


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def key_of(value: Any) -> str:
    """A short hash of anything JSON can say; the order of keys does not matter."""
    return digest(json.dumps(value, sort_keys=True).encode())[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; of a file that has not changed, computed once."""
    state = path.stat()
    return _hash_file(path.absolute(), state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_file(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path, *patterns: str) -> str:
    """One hash of the names and bytes of all files in `folder` that match, at any depth."""
    files = sorted({p for pattern in patterns for p in folder.rglob(pattern) if p.is_file()})
    return key_of([[str(p.relative_to(folder)), hash_file(p)] for p in files])


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to fill; at the end it takes the place of `path`, so that a reader sees the
    old bytes or the new ones, never a part. Gone on an error.

    Raises RunError where safetensors cannot write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        _sync(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except SafetensorError as error:
        raise RunError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, one row each."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_json(path: Path) -> Any:
    """Raises RunError where the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: damaged, no valid JSON ({error})") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; an empty list where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise RunError(f"{path}: damaged, not UTF-8") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise RunError(f"{path}:{number}: damaged, no valid JSON") from None
    return rows


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `path` at the end, or is gone on an error.

    Raises RunError where safetensors cannot write into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.replace(path)  # killed between the two renames below
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        partial.chmod(0o755)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        try:
            partial.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except SafetensorError as error:
        raise RunError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
