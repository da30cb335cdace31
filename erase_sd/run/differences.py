"""What differs between two attempts at the same work, for refusing to mix them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..errors import RunError
from .records import UnlearnRecord


def refuse_other(
    folder: Path, before: UnlearnRecord, settings: dict[str, Any], **entry: Any
) -> None:
    """RunError if an unlearning would resume, or be reused, with other settings than it began with."""
    was = json.loads(json.dumps(dataclasses.asdict(before)))
    now = json.loads(json.dumps({"settings": settings, **entry}))
    pairs = {"concepts": (was["concepts"], now["concepts"])}
    for part in ("settings", "origin"):
        for name in sorted({*was[part], *now[part]}):
            pairs[name] = (was[part].get(name), now[part].get(name))
    for name, (old, new) in pairs.items():
        if old != new:
            raise RunError(
                f"{folder}: unlearn began with {name} {brief(old)}, now it is {brief(new)}; use the "
                "same, choose another run name, or remove the folder"
            )


def brief(value: Any) -> str:
    """A value as JSON of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
