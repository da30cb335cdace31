"""Prompt files: one prompt a line, UTF-8."""

from __future__ import annotations

from pathlib import Path

from .errors import DataError


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, without blank lines and lines that begin with `#`.

    Raises DataError where the file is missing, not UTF-8, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"--prompts {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts {path}: not UTF-8 (byte {error.start})") from None
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise DataError(f"--prompts {path}: holds no prompt; needs one a line")
    return prompts
