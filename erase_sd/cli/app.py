"""The program: all commands, and the one place where errors and log records become lines on stderr."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import runtime, termination
from ..errors import EraseError
from ..sharing import writes
from .attack import attack
from .command import Command
from .data import data, prompts
from .job import generate, run, score, unlearn
from .launch import launch
from .research import WordLists, compare, evaluate, explain, methods
from .results import export, play, report, show


def option_of(command: Any, field: str | None) -> str | None:
    """The command's option for a field of the library: `--learning-rate` for `learning_rate`.

    A field may be the plural of the option, or the reverse. A field without an option stays as it is.
    """
    if field is None:
        return None
    options: dict[str, str] = {
        parameter.name: max(parameter.opts, key=len) for parameter in command.params
    }
    for name in (field, f"{field}s", field.removesuffix("s")):
        if name in options:
            return options[name]
    return field.replace("_", " ")


class Program(TyperGroup):
    """A group of commands whose user errors become one line on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; an EraseError is one line that names the option, and exit status 1."""
        try:
            return super().invoke(ctx)
        except EraseError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand)
            _fail(error.line(option_of(command, error.field)))
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}")
        except (RuntimeError, MemoryError, ImportError) as error:  # a library may not fit either
            if not runtime.is_out_of_memory(error):
                raise
            _fail("out of memory; smaller batches need less")


def _fail(message: str) -> None:
    _print_line(message)
    raise typer.Exit(1)


def _print_line(message: str) -> None:
    if sys.stderr:  # closed, as by 2>&-; print would use stdout instead
        print(f"erase-sd: {' '.join(message.split())}", file=sys.stderr)


class StderrLines(logging.Handler):
    """Prints log records on stderr like errors, `erase-sd: message`."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_line(record.getMessage())


app = typer.Typer(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "The job": (unlearn, generate, score, run, launch),
    "Results of a run": (report, show, play, export),
    "Data": (data, prompts),
    "Research": (methods, compare, attack, evaluate, explain),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        kind = WordLists if command is compare else Command
        # What follows launch's command belongs to that command.
        settings = {"allow_interspersed_args": command is not launch}
        app.command(cls=kind, rich_help_panel=panel, context_settings=settings)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"erase-sd {runtime.version_of_package()}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Erase concepts from Stable Diffusion by unlearning its text encoder or U-Net, and measure the result."""
    del version  # its callback prints it
    if not writes():  # only the first of a launcher's processes reports
        sys.stdout = io.StringIO()
        runtime.log.setLevel(logging.ERROR)


def main() -> None:
    """Runs `erase-sd`."""
    runtime.keep_freed_memory()
    termination.handle_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that only knows ASCII
    if not any(isinstance(handler, StderrLines) for handler in runtime.log.handlers):
        runtime.log.addHandler(StderrLines())
        runtime.log.setLevel(logging.INFO)
    try:
        Path.cwd()
    except OSError:  # on which libraries abort the process
        _print_line("the working directory no longer exists")
        sys.exit(1)
    try:
        app()
    except termination.TerminatedError as error:
        if runtime.processes()[1] == 1:  # else the launcher says so
            _print_line("terminated; the same command resumes")
        sys.exit(128 + error.signal)
