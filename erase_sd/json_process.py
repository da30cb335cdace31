"""A module of this package in a process of its own that answers lines of JSON with lines of JSON."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import errors
from .errors import EraseError, ModelError, reason

PACKAGE = Path(__file__).parent
REPLY = "erase-sd reply "
"""Beginning of a line of standard output that is a reply; a start-up hook of Python may print others."""


class JsonProcess:
    """A process that is started at once and runs `main` of `module`, which calls `serve`.

    `what` is its name in messages, `named` are the `field` and `value` of its errors. The environment
    variable `home`, if given, is set to a folder of its own. Raises ModelError if it cannot be started.
    """

    def __init__(
        self,
        what: str,
        module: str,
        setup: object,
        environment: Mapping[str, str] | None = None,
        home: str | None = None,
        **named: Any,
    ) -> None:
        self.owner = os.getpid()
        """The process that may ask; a fork of it may not."""
        self._what, self._named = what, named
        # Not a TemporaryDirectory, which would go with the copy of this object that a fork drops.
        self._folder = tempfile.mkdtemp() if home else None
        own = {home: self._folder} if home and self._folder else {}
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(  # noqa: S603
                isolated(module),
                env=os.environ | (environment or {}) | own,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
            )  # fmt: skip
        except OSError as error:
            self._clean_up()
            raise ModelError(f"{what} cannot start ({reason(error)})", **named) from None
        self._send(setup)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, after an error or because something killed it."""
        return self._process.poll() is not None

    def ask(self, question: object) -> Any:
        """The answer. Raises the EraseError that the process reports, or ModelError if it has ended; after
        either, it cannot be asked again."""
        self._send(question)
        reply = self._reply()
        if error := reply.get("error"):
            kind: type[EraseError] = getattr(errors, error.pop("kind"))
            raise kind(**error)
        return reply["answer"]

    def end(self) -> None:
        """Kills the process and removes its folder."""
        with contextlib.suppress(OSError), self._process as process:
            process.kill()  # the block's end closes the pipes
        self._clean_up()

    def _send(self, message: object) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError):  # if it has ended, the reply is empty
            print(json.dumps(message), file=self._process.stdin, flush=True)

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(REPLY) and line.endswith("\n"):
                reply: dict[str, Any] = json.loads(line.removeprefix(REPLY))
                return reply
        raise ModelError(f"{self._what}'s process failed ({self._why()})", **self._named)

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            self._stderr.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _why(self) -> str:
        """The last line on its stderr, or its exit status."""
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {status}"


class KeptProcess:
    """One process, kept from use to use; threads take turns.

    It ends with this process, after an error, and when another is asked for. A fork has its own.
    """

    def __init__(self) -> None:
        self._process: JsonProcess | None = None
        self._key: Hashable = None
        self._renew_lock()
        atexit.register(self._end)  # without the lock, which a daemon thread may hold
        if hasattr(os, "register_at_fork"):  # a thread that the fork lacks may have held it
            os.register_at_fork(after_in_child=self._renew_lock)

    @contextlib.contextmanager
    def process(self, key: Hashable, start: Callable[[], JsonProcess]) -> Iterator[JsonProcess]:
        """The process of this `key`, which `start` starts unless it is there."""
        with self._lock:
            if not self._is_usable(key):
                self._end()
                self._process, self._key = start(), key
            assert self._process
            try:
                yield self._process
            except BaseException:  # after a signal, the next answer would belong to this question
                self._end()
                raise

    def _is_usable(self, key: Hashable) -> bool:
        own = self._process
        return bool(own and own.owner == os.getpid() and self._key == key and not own.has_ended)

    def end(self) -> None:
        """Ends the process; the next use starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.owner == os.getpid():
            process.end()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


def isolated(module: str, *arguments: str) -> list[str]:
    """The command that runs `main` of a module of this package in a new interpreter.

    `-P` keeps files of the working directory from being imported as modules.
    """
    code = f"import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, str(PACKAGE.parent), *arguments]


def serve(prepare: Callable[[Any], Callable[[Any], object]]) -> None:
    """Runs in the process: the function that `prepare(setup)` returns answers each question, until standard
    input ends. An EraseError, also one of `prepare`, is the last answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the parent too
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # for whatever a library prints

    def reply(**line: object) -> None:
        print(REPLY + json.dumps(line), file=replies, flush=True)

    try:
        answer = prepare(json.loads(sys.stdin.buffer.readline()))
        for line in sys.stdin.buffer:
            reply(answer=answer(json.loads(line)))
    except EraseError as error:
        value = None if error.value is None else str(error.value)
        reply(
            error={
                "kind": type(error).__name__, "rule": error.rule, "field": error.field, "value": value,
            }
        )  # fmt: skip
