"""Syntax trees: parsed once, kept in the cache folder, the same from there as from the parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erase_sd.data import parses, syntax
from erase_sd.data.syntax import parse
from erase_sd.mini.captions import training_captions
from erase_sd.mini.scenes import sample

ODD = ["An apple's core\u2019s end!", "two  spaces", "Une pomme rouge", "\u5317\u4eac apple", ""]
CAPTIONS = [text for seed in range(80) for text in training_captions(sample(seed))] + ODD


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parses, "_held", {})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reach the parser."""
    texts: list[str] = []

    class Counting:
        def pipe(self, some: list[str], **options: Any) -> Iterator[Any]:
            texts.extend(some)
            return syntax.parser().pipe(some, **options)

    monkeypatch.setattr(syntax, "parsed", lambda t, m, _: parses.parsed(t, m, Counting))
    return texts


def properties(doc: Any) -> list[tuple[Any, ...]]:
    return [
        (t.text, t.idx, t.tag_, t.pos_, t.dep_, t.head.i, t.whitespace_, t.lower_, t.is_alpha,
         [below.i for below in t.subtree])
        for t in doc
    ]  # fmt: skip


def test_trees_from_the_cache_are_those_of_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = [properties(doc) for doc in syntax.parser().pipe(map(syntax._plain, CAPTIONS))]
    first = [properties(doc) for doc in parse(CAPTIONS)]
    assert len(list(Path("cache/parses").glob("*.spacy"))) == 1
    parses._held.clear()
    monkeypatch.setattr(syntax, "parser", None)  # no longer needed
    docs = list(parse(CAPTIONS))
    assert first == [properties(doc) for doc in docs] == direct
    assert any(list(doc.noun_chunks) for doc in docs)


def test_no_text_is_parsed_twice(counted: list[str]) -> None:
    few = CAPTIONS[:20]
    list(parse([*few, *few]))
    list(parse(few[5:]))
    assert len(counted) == len({syntax._plain(text) for text in few})
    assert not Path("cache/parses").exists()  # too few for a file


def test_a_damaged_file_is_parsed_again(caplog: pytest.LogCaptureFixture) -> None:
    before = [properties(doc) for doc in parse(CAPTIONS)]
    [file] = Path("cache/parses").glob("*.spacy")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    parses._held.clear()
    assert [properties(doc) for doc in parse(CAPTIONS)] == before
    assert "damaged, made again" in caplog.text
    assert file.read_bytes() != bytes(data)
