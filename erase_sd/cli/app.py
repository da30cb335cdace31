"""The program: its commands register themselves here, and its errors end here."""

from __future__ import annotations

import sys

import typer

from .. import runtime
from ..errors import EraseError

app = typer.Typer(
    help="Take a concept out of Stable Diffusion, and show that it is gone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The `erase-sd` program: one line on stderr and exit status 1 for what a user can mend."""
    runtime.keep_freed_memory()
    try:
        app()
    except EraseError as error:
        _fail(" ".join(str(error).split()))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")


def _fail(line: str) -> None:
    print(f"erase-sd: {line}", file=sys.stderr)
    raise SystemExit(1)
