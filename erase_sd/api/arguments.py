"""Arguments that may be one text or several."""

from __future__ import annotations

from collections.abc import Iterable


def texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """One text, or several in any iterable: a text is never taken for a sequence of its letters, and a
    generator can be read for each run and concept."""
    return (value,) if isinstance(value, str) else tuple(value)
