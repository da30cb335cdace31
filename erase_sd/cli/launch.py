"""`erase-sd launch`: several processes for one command, without torchrun."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated

import typer

SHARED_COMMANDS = ("run", "unlearn", "generate", "score", "attack", "evaluate", "compare")
"""Commands that share their work out among processes."""
MAX_PROCESSES = 256


def launch(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help=f"Command with its options: {', '.join(SHARED_COMMANDS[:-1])} or {SHARED_COMMANDS[-1]}.",
        ),
    ],
    processes: Annotated[
        int,
        typer.Option(
            "--processes", "-n", min=1, max=MAX_PROCESSES, help="Number of processes, one per GPU."
        ),
    ],
) -> None:
    """Run a command in several processes that share its work.

    The files are the same as with one process, except that unlearned weights differ by rounding.

    On a CPU each process has one thread unless OMP_NUM_THREADS is set. Prompts from standard input (-)
    reach all processes.
    """
    if command[0] not in SHARED_COMMANDS:
        raise typer.BadParameter(f"needs one of {', '.join(SHARED_COMMANDS)}, got {command[0]}")
    whole = [sys.executable, "-m", "erase_sd", *command]
    raise typer.Exit(run_processes(whole, processes, _reads_standard_input(command)))


def _reads_standard_input(command: Sequence[str]) -> bool:
    from ..data.prompts import STANDARD_INPUT

    return any(Path(word.removeprefix("--prompts=")) in STANDARD_INPUT for word in command)


def run_processes(command: Sequence[str], count: int, reads_input: bool = False) -> int:
    """Runs `count` processes of a command to their end; returns the exit status.

    The first process has the terminal; if the command `reads_input`, every process gets all of standard
    input. When one fails, all are stopped, and the last line that it wrote to stderr is shown.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as opened:
        inputs = _inputs(count, opened) if reads_input else [None] * count
        outputs = [
            opened.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            for _ in range(count)
        ]
        children: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(count):
                child = subprocess.Popen(  # noqa: S603
                    command,
                    env=_environment(number, count, port),
                    stdin=inputs[number] or (subprocess.DEVNULL if number else None),
                    stdout=subprocess.DEVNULL if number else None,
                    stderr=outputs[number] if number else None,
                )
                children.append(child)
            failed = _wait(children)
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait()
        if failed is None:
            return 0
        _say_why(failed, outputs[failed], children)
        return max(children[failed].returncode, 1)


def _say_why(failed: int, output: IO[str], children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Prints the last line of the failed process, unless it was the first, which has printed its own, and
    what happened then."""
    output.seek(0)
    for line in output.read().strip().splitlines()[-1:]:
        print(line, file=sys.stderr)
    if len(children) > 1:
        print(
            f"erase-sd: process {failed + 1} of {len(children)} ended with status "
            f"{children[failed].returncode}; all were stopped; the same command resumes, with any "
            "number of processes",
            file=sys.stderr,
        )


def _inputs(count: int, opened: contextlib.ExitStack) -> list[IO[bytes]]:
    """Standard input, which can be read only once, as one file per process."""
    from ..data.prompts import MAX_PROMPT_BYTES

    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1) if sys.stdin else b""
    files: list[IO[bytes]] = []
    for _ in range(count):
        files.append(opened.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115
        files[-1].write(data)
        files[-1].seek(0)
    return files


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits until all have ended or one has failed; returns the number of the failed one."""
    while True:
        states = [child.poll() for child in children]
        for number, status in enumerate(states):
            if status:
                return number
        if None not in states:
            return None
        time.sleep(0.05)


def _environment(number: int, count: int, port: int) -> dict[str, str]:
    """torchrun's variables for one of the processes."""
    own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    own |= {"MASTER_PORT": port}
    defaults = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    return defaults | os.environ | {name: str(value) for name, value in own.items()}
