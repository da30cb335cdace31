"""Captions without a concept, as a person would write them."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import erase_sd
from erase_sd.data import parser, removal
from erase_sd.data.concept import Concept
from erase_sd.data.nouns import forms_of
from erase_sd.data.removal import remove_concepts, remove_concepts_from
from erase_sd.errors import ModelError

GOLD = Path(__file__).parents[2] / "shared/data/reductions"


@pytest.mark.parametrize(
    ("text", "concept", "remaining"),
    [
        # The object goes with a verb that needs it, and leaves one that does not (Levin 1993, 1.2.1).
        ("A man holding an apple in a park.", "apple", "A man in a park."),
        ("A boy eats an apple at a table.", "apple", "A boy eats at a table."),
        ("Two people riding bicycles in a park.", "bicycle", "Two people riding in a park."),
        ("A girl feeds an apple to a horse.", "apple", "A girl feeds a horse."),
        # A preposition goes with its object, a complex one with its noun.
        ("A dog in front of a chair on grass.", "chair", "A dog on grass."),
        ("A woman looking at an elephant in a zoo.", "elephant", "A woman in a zoo."),
        # A coordination closes around the gap.
        ("a cup, an apple and a dog", "apple", "a cup and a dog"),
        ("A cat, a dog, and a horse in a field.", "horse", "A cat and a dog in a field."),
        # What a subject did goes with it; whom and where stay.
        ("A dog chases a cat in a garden.", "dog", "a cat in a garden."),
        ("There is an apple beside a dog in a park.", "apple", "a dog in a park."),
        # Modifiers, possessors and partitives.
        ("A chair leg on the floor.", "chair", "A leg on the floor."),
        ("the green apple's leaf on a plate", "apple", "leaf on a plate"),
        ("A pair of scissors and a book.", "scissors", "a book."),
        # What is kept keeps its capitals.
        ("An APPLE and a Dog near Big Ben", "apple", "a Dog near Big Ben"),
    ],
)
def test_what_cannot_stand_without_the_concept_goes_too(
    text: str, concept: str, remaining: str
) -> None:
    assert erase_sd.concept_removed(text, concept) == remaining


def test_a_concept_object_brings_its_synonyms_and_kept_senses() -> None:
    apple = Concept("apple", synonyms=("pippin",), keep_senses=("apple laptop",))
    text = "An apple laptop beside a pippin on a desk"
    assert erase_sd.concept_removed(text, apple) == "An apple laptop on a desk"
    assert erase_sd.concept_removed("a dog", apple) == "a dog"


@pytest.mark.parametrize(
    ("name", "mentioned", "not_mentioned"),
    [
        ("apples", ("an apple", "Apples"), ("pineapples",)),
        ("glasses", ("a man with glasses",), ("a glass of wine",)),
        ("scissors", ("a pair of scissors",), ("scissored",)),
        ("people", ("two people", "a person"), ("peoples'-choice",)),
        ("Golf Ball", ("golf balls", "a GOLF-BALL"), ("a ball",)),
        ("bus", ("buses",), ("a bu",)),
        ("caf\u00e9", ("a CAFE\u0301", "caf\u00e9s"), ("a cafe",)),
        ("cafe", ("two cafes",), ("cafe\u0301", "caf\u00e9")),
        ("bird's eye", ("a bird\u2019s eye view",), ("a bird",)),
        ("\u82f9\u679c", ("\u684c\u4e0a\u7684\u7ea2\u82f9\u679c",), ("\u82f9",)),
        ("\u3044\u306c", ("\u767d\u3044\u3044\u306c\u304c",), ("\u3044",)),
        ("\uc0ac\uacfc", ("\uc0ac\uacfc\ub97c",), ("\ud48b\uc0ac\uacfc",)),
    ],
)
def test_a_concept_matches_as_a_person_would(
    name: str, mentioned: tuple[str, ...], not_mentioned: tuple[str, ...]
) -> None:
    assert all(Concept(name).in_text(text) for text in mentioned)
    assert not any(Concept(name).in_text(text) for text in not_mentioned)


def test_spans_are_offsets_of_the_text_in_its_own_unicode_form() -> None:
    text = unicodedata.normalize("NFD", "a caf\u00e9 and a dog")
    assert [text[a:b] for a, b in Concept("caf\u00e9").spans(text)] == ["cafe\u0301"]
    assert erase_sd.concept_removed(text, "caf\u00e9") == "a dog"


@pytest.mark.parametrize("noun", ["bus", "glass", "cactus", "lens", "gas", "dress", "chess"])
def test_a_singular_that_ends_in_s_is_not_taken_for_a_plural(noun: str) -> None:
    assert all(len(form) >= len(noun) for form in forms_of(noun) if form != "cacti")


def test_another_language_loses_the_noun_alone_and_that_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    removal.log_unknown_language.cache_clear()
    german = "ein Mann isst einen Apfel und eine Birne"
    assert remove_concepts(german, [Concept("Apfel")])[0] == "ein Mann isst einen und eine Birne"
    chinese = "\u684c\u4e0a\u7684\u82f9\u679c\u548c\u72d7"
    assert remove_concepts(chinese, [Concept("\u82f9\u679c")]) == (
        "\u684c\u4e0a\u7684\u548c\u72d7",
        [(3, 5)],
    )
    assert len(caplog.messages) == 1 and "only the noun is removed" in caplog.messages[0]


def test_a_missing_parser_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "MODEL", "no_such_model")
    parser.end_parser()
    with pytest.raises(ModelError, match="needs `pip install no-such-model`"):
        erase_sd.concept_removed("an apple in a text that no other test parses", "apple")
    parser.end_parser()


def test_many_captions_are_reduced_as_each_alone() -> None:
    apple, dog = Concept("apple"), Concept("dog")
    texts = ["an apple and a cat", "a tree", "a dog eats an apple in a park", "", "dogs run"]
    assert remove_concepts_from(texts, [apple, dog]) == [
        remove_concepts(text, [apple, dog]) for text in texts
    ]


def test_removed_spans_are_all_that_changed() -> None:
    text = "a cat, a dog and an apple in a park"
    remaining, removed = remove_concepts(text, [Concept("apple")])
    assert remaining == "a cat and a dog in a park"
    assert [text[a:b] for a, b in removed] == [",", "and an apple"]


def _scored(file: str) -> dict[str, dict[str, float]]:
    """Shares by kind of caption, as `score.py` beside the gold set judges them."""
    spec = importlib.util.spec_from_file_location("score", GOLD / "score.py")
    assert spec is not None and spec.loader is not None
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    tally: dict[str, list[dict[str, bool]]] = defaultdict(list)
    for line in (GOLD / file).read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        judged = score.judge(row, erase_sd.concept_removed(row["caption"], row["concept"]))[0]
        tally["all"].append(judged)
        tally[row["kind"]].append(judged)
    return {
        kind: {name: sum(j[name] for j in rows) / len(rows) for name in rows[0]}
        for kind, rows in tally.items()
    }


@pytest.mark.skipif(not GOLD.is_dir(), reason=f"needs the hand-made reductions in {GOLD}")
def test_hand_made_reductions_of_flickr30k_captions_are_met(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares = {name: _scored(f"reductions-{name}.jsonl") for name in ("dev", "extra")}
    with capsys.disabled():
        for name, kinds in shares.items():
            for kind in ("all", "subject"):
                values = ", ".join(f"{k} {v:.1%}" for k, v in kinds[kind].items())
                print(f"\nreductions-{name}, {kind}: {values}", end="")
    dev = shares["dev"]
    assert dev["all"]["nocomma"] >= 0.80 and dev["all"]["content"] >= 0.96
    assert dev["all"]["clean"] >= 0.93 and dev["subject"]["content"] >= 0.80
