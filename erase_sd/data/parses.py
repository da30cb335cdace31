"""Syntax trees by text: none is parsed twice, and those of many texts are kept in the cache folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from ..checked import load_bytes, save_bytes
from ..errors import RunError
from ..files import cache_folder, key_of
from ..runtime import log, version_of_package
from .parser import MODEL, end_parser, parse_texts
from .tree import Parsed, Tree

MIN_STORED = 64
"""Fewest texts parsed in one call that are worth a file."""
MAX_HELD = 200_000
"""Maximum number of texts whose parses a process holds, about 5 kB each; beyond it, all are dropped."""

_held: dict[str, Parsed] = {}


def trees_of(texts: Sequence[str]) -> Iterator[Tree]:
    """The syntax tree of each text. A damaged file in the cache is replaced."""
    if len(_held) + len(texts) > MAX_HELD:
        _held.clear()
    own = {text: parsed for text in texts if (parsed := _held.get(text))}
    if missing := [text for text in dict.fromkeys(texts) if text not in own]:
        own |= zip(missing, _parsed(missing), strict=True)
        _held.update(own)
    return map(Tree, [own[text] for text in texts])


def forget() -> None:
    """Frees what is held, and ends the parser's process; the next call begins anew."""
    _held.clear()
    end_parser()


def _parsed(texts: Sequence[str]) -> list[Parsed]:
    """The parses of texts, in their order: from the cache, or now."""
    if len(texts) < MIN_STORED:
        return parse_texts(texts)
    fields = [field.name for field in dataclasses.fields(Parsed)]
    packages = [version_of_package(MODEL), version_of_package("spacy")]
    key = key_of([*packages, fields, texts])
    path = cache_folder() / "parses" / f"{key}.json"
    if (data := load_bytes(path)) is not None:
        return [Parsed.of_json(row) for row in json.loads(data)]
    parsed = parse_texts(texts)
    try:
        save_bytes(path, json.dumps([dataclasses.astuple(one) for one in parsed]).encode())
    except (OSError, RunError) as error:
        log.warning("%s: syntax trees are not cached (%s)", path, error)
    return parsed
