"""Foreign pickles, read without running anything in them.

A pickle is a program: it names classes and functions, and has them called. An unpickler that is handed an
`Inert` for every name can only build nested records.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any


class Inert(dict[Any, Any]):
    """Stands for an object of a class that the pickle names.

    Keeps the constructor's arguments (`args`), the pickled state (`state`) and the items. It has no
    `__dict__` and its own `__setstate__`, so nothing that the pickle sets on it is ever looked up or
    called.
    """

    __slots__ = ("args", "state")
    name = ""  # module and name of the class
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        inert = super().__new__(cls)
        inert.args, inert.state = args, {}
        return inert

    def __init__(self, *args: Any, **_: Any) -> None:
        """The arguments are in `args`, not among the items."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def checked_pickle(data: bytes) -> io.BytesIO:
    """The pickle as a file; ValueError if it would make the unpickler allocate far more than it holds.

    CPython's memo is an array, which a single large index fills with gigabytes.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"memo index {argument} in {len(data)} bytes")
    return io.BytesIO(data)
