"""Readers that trust no file: bytes of regular files, JSON as an object or as a checked record."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, TypeVar

from .errors import RunError, reason

T = TypeVar("T")


def check_regular(path: Path) -> None:
    """RunError if the path exists and is not a regular file: opening a pipe may block forever."""
    if path.exists() and not path.is_file():
        raise RunError(f"{path}: not a regular file")


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes.

    Raises FileNotFoundError if there is none, and RunError for what cannot be read: a folder, a device,
    a pipe that nobody may ever write to, a file of another user.
    """
    try:
        check_regular(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        why = getattr(error, "strerror", None) or reason(error)
        raise RunError(f"{path}: cannot be read ({why})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a foreign JSON file that holds an object; RunError if it is missing or holds none."""
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: missing") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged, not valid JSON ({reason(error)})") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged, needs a JSON object, got {json.dumps(value)[:60]}")
    return value


def read_record(path: Path, kind: type[T], hint: str = "") -> T:
    """Reads a JSON file as the dataclass `kind` and checks its types.

    Raises RunError, naming the first field at fault and ending with `hint`, if the file is missing,
    damaged or of another version.
    """
    try:
        return parse_record(read_bytes(path), kind, str(path), hint)
    except FileNotFoundError:
        raise RunError(f"{path}: missing{f'; {hint}' if hint else ''}") from None


def read_records(path: Path, kind: type[T]) -> list[T]:
    """Reads a JSON lines file, one `read_record` per line; an empty list if there is no file."""
    try:
        return parse_records(read_bytes(path), kind, str(path))
    except FileNotFoundError:
        return []


def parse_records(data: bytes, kind: type[T], where: str) -> list[T]:
    """JSON lines as the dataclass `kind`; RunError, beginning with `where`, if a line is not one."""
    lines = data.removesuffix(b"\n").split(b"\n")
    return [parse_record(line, kind, f"{where}:{n}") for n, line in enumerate(lines, 1) if line]


def parse_record(data: bytes | str, kind: type[T], where: str, hint: str = "") -> T:
    """JSON as the dataclass `kind`; RunError, beginning with `where`, if it is not one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # a class is hashable
        return adapter.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        why = f"{field}: {first['msg']}" if field else first["msg"]
        end = f"; {hint}" if hint else ""
        raise RunError(
            f"{where}: damaged or of another version ({reason(ValueError(why))}){end}"
        ) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
