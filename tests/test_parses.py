"""Syntax trees: parsed once in a process of their own, kept in the cache folder, the same from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faulty import side_by_side
from unlearn_runs import short

from erase_sd import json_process
from erase_sd.data import parser, parses, syntax
from erase_sd.data.syntax import parse
from erase_sd.data.tree import Parsed, Token, Tree
from erase_sd.errors import ModelError
from erase_sd.json_process import JsonProcess
from erase_sd.mini.captions import training_captions
from erase_sd.mini.scenes import sample
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.stage import unlearn

ODD = ["An apple's core\u2019s end!", "two  spaces", "Une pomme rouge", "\u5317\u4eac apple", ""]
CAPTIONS = [text for seed in range(20) for text in training_captions(sample(seed))] + ODD

FORGET = parses.forget
"""It does nothing in other tests (conftest.py)."""


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parses, "_held", {})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reach the parser."""
    texts: list[str] = []

    def counting(some: list[str]) -> list[Parsed]:
        texts.extend(some)
        return parser.parse_texts(some)

    monkeypatch.setattr(parses, "parse_texts", counting)
    return texts


def properties(tokens: list[Token]) -> list[tuple[Any, ...]]:
    return [
        (t.text, t.start, t.tag, t.pos, t.dep, t.head.i, t.space, t.lower,
         [below.i for below in t.lefts], [below.i for below in t.rights], [b.i for b in t.subtree])
        for t in tokens
    ]  # fmt: skip


def test_trees_are_those_of_spacy() -> None:
    import spacy

    language = spacy.load(parser.MODEL)
    for text, tree in zip(CAPTIONS, parse(CAPTIONS), strict=True):
        doc = language(syntax._plain(text))
        expected = [
            (t.text, t.idx, t.tag_, t.pos_, t.dep_, t.head.i, t.whitespace_, t.lower_,
             [below.i for below in t.lefts], [below.i for below in t.rights], [b.i for b in t.subtree])
            for t in doc
        ]  # fmt: skip
        assert properties(tree.tokens) == expected
        assert tree.text == doc.text
        phrases = [([t.i for t in phrase], phrase.root.i) for phrase in doc.noun_chunks]
        assert [([t.i for t in tokens], head.i) for tokens, head in tree.noun_phrases] == phrases
    assert any(tree.noun_phrases for tree in parse(CAPTIONS))


def test_trees_from_the_cache_are_those_of_the_parser(counted: list[str]) -> None:
    first = [properties(tree.tokens) for tree in parse(CAPTIONS)]
    assert len(list(Path("cache/parses").glob("*.json"))) == 1
    parses._held.clear()
    counted.clear()
    assert [properties(tree.tokens) for tree in parse(CAPTIONS)] == first
    assert not counted


@pytest.mark.parametrize("package", ["spacy", parser.MODEL])
def test_trees_of_another_version_of_the_parser_are_not_read(
    counted: list[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    list(parse(CAPTIONS))
    parses._held.clear()
    counted.clear()
    installed = parses.version_of_package
    monkeypatch.setattr(
        parses, "version_of_package", lambda p: "0.0" if p == package else installed(p)
    )
    list(parse(CAPTIONS))
    assert len(counted) == len({syntax._plain(text) for text in CAPTIONS})


def test_no_text_is_parsed_twice(counted: list[str]) -> None:
    few = CAPTIONS[:20]
    list(parse([*few, *few]))
    list(parse(few[5:]))
    assert len(counted) == len({syntax._plain(text) for text in few})
    assert not Path("cache/parses").exists()  # too few for a file


def test_a_damaged_file_is_parsed_again(caplog: pytest.LogCaptureFixture) -> None:
    before = [properties(tree.tokens) for tree in parse(CAPTIONS)]
    [file] = Path("cache/parses").glob("*.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    parses._held.clear()
    assert [properties(tree.tokens) for tree in parse(CAPTIONS)] == before
    assert "damaged, made again" in caplog.text
    assert file.read_bytes() != bytes(data)


def test_the_program_itself_does_not_import_spacy() -> None:
    code = (
        "import sys, erase_sd; print(erase_sd.concept_removed('a man holding an apple', 'apple')); "
        "print('spacy' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines() == ["a man", "False"]


@pytest.fixture
def new_parser() -> None:
    """The test's first text starts a parser."""
    parser.end_parser()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_parser_that_was_killed_while_idle_is_started_again() -> None:
    [before] = parser.parse_texts(["a dog"])
    worker = parser._kept._process
    assert worker is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert parser.parse_texts(["a dog"]) == [before]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_parser_that_is_killed_at_work_is_one_line_and_the_next_call_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(worker: JsonProcess, _: object) -> None:
        os.kill(worker._process.pid, signal.SIGKILL)

    [before] = parser.parse_texts(["a dog"])
    with monkeypatch.context() as patch:
        patch.setattr(JsonProcess, "_send", killed)
        with pytest.raises(
            ModelError, match=r"the English parser's process failed \(exit status -9\)"
        ):
            parser.parse_texts(["a dog"])
    assert parser.parse_texts(["a dog"]) == [before]


@pytest.mark.usefixtures("new_parser")
def test_what_start_up_hooks_of_python_print_is_no_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = parser.parse_texts(["a dog"])
    (tmp_path / "sitecustomize.py").write_text("print('hello'); print('{}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parser.end_parser()
    assert parser.parse_texts(["a dog"]) == expected


@pytest.mark.usefixtures("new_parser")
def test_a_parser_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no-python")
    with pytest.raises(ModelError, match=r"the English parser cannot start \(.*No such file"):
        parser.parse_texts(["a dog"])


def test_an_interrupted_question_is_not_answered_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = parser.parse_texts(["a dog"])
    worker = parser._kept._process
    assert worker is not None and worker._process.stdout is not None
    with monkeypatch.context() as patch:
        patch.setattr(
            json_process.json, "loads", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            parser.parse_texts(["a cat"])
    assert parser.parse_texts(["a dog"]) == expected


@pytest.mark.forks(tensors=False)
def test_forked_processes_have_parsers_of_their_own() -> None:
    texts = ["a man near a dog", "a cat near a dog"]
    expected = [parser.parse_texts([text]) for text in texts]

    def work(number: int) -> None:
        for _ in range(3):
            assert parser.parse_texts([texts[number]]) == expected[number]
        parser.end_parser()

    process = parser._kept._process
    assert side_by_side(2, work) == [0] * 2
    assert parser.parse_texts(texts[:1]) == expected[0]  # the forks have not ended ours
    assert process is parser._kept._process


def test_threads_get_the_trees_of_their_own_texts() -> None:
    texts = [[f"a {thing} near a dog"] for thing in ("man", "cat", "cup", "kite")]
    expected = [parser.parse_texts(own) for own in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(parser.parse_texts, texts * 25)) == expected * 25


def test_trees_are_complete_even_if_another_thread_forgets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    list(parse(["a dog"]))
    parsed = parses._parsed

    def forgetful(texts: list[str]) -> list[Parsed]:
        answer = parsed(texts)
        parses._held.clear()
        return answer

    monkeypatch.setattr(parses, "_parsed", forgetful)
    assert [tree.text for tree in parse(["a dog", "a cat"])] == ["a dog", "a cat"]


@pytest.mark.forks(tensors=False)
def test_a_fork_parses_while_a_thread_that_it_lacks_was_parsing() -> None:
    parsing, ended = threading.Event(), threading.Event()

    def occupy() -> None:
        with parser._kept._lock:
            parsing.set()
            ended.wait()

    def work(_: int) -> None:
        assert parser.parse_texts(["a dog"])
        parser.end_parser()

    thread = threading.Thread(target=occupy)
    thread.start()
    parsing.wait()
    try:
        assert side_by_side(1, work) == [0]
    finally:
        ended.set()
        thread.join()


def test_a_tree_may_be_deeper_than_python_recurses() -> None:
    count = 2 * sys.getrecursionlimit()
    tree = Tree(
        Parsed(
            words=["of"] * count, spaces=[True] * count, heads=[0, *range(count - 1)],
            tags=["IN"] * count, pos=["ADP"] * count, labels=["prep"] * count, noun_phrases=[],
        )
    )  # fmt: skip
    assert tree.tokens[0].subtree == tree.tokens


@pytest.mark.usefixtures("new_parser")
def test_files_of_the_working_directory_are_not_imported() -> None:
    for name in ("json", "spacy", "numpy", "thinc"):
        Path(f"{name}.py").write_text("raise SystemExit(3)\n")
    assert Tree(*parser.parse_texts(["a dog"])).text == "a dog"


def test_unlearning_ends_the_parser_before_it_trains(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[object] = []
    monkeypatch.setattr(parses, "forget", FORGET)
    unlearn(short(), tiny, Run(Path("runs/a")), lambda *_: workers.append(parser._kept._process))
    assert workers and not any(workers)
