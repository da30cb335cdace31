"""Arguments of the Python functions: one text is one text, and any iterable is several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

import erase_sd
from erase_sd.run import Run, run_folder


class _ReachedError(Exception):
    """A stage was called, with these arguments."""


def _raise_arguments(*arguments: Any, **named: Any) -> None:
    raise _ReachedError(*arguments, named)


def _one(text: str) -> Iterator[str]:
    """A generator, which can be read only once."""
    yield text


@pytest.mark.parametrize("several", [str, lambda text: [text], _one])
def test_one_synonym_or_kept_sense_is_not_a_sequence_of_letters(
    several: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erase_sd.unlearning.stage.unlearn", _raise_arguments)
    with pytest.raises(_ReachedError) as reached:
        erase_sd.unlearn("bicycle", synonyms=several("bike"), keep_senses=several("bmx"))
    [concept] = reached.value.args[0].concepts
    assert (concept.synonyms, concept.keep_senses) == (("bike",), ("bmx",))


def test_every_concept_keeps_the_senses_of_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erase_sd.unlearning.stage.unlearn", _raise_arguments)
    with pytest.raises(_ReachedError) as reached:
        erase_sd.unlearn(["apple", "bat"], keep_senses=_one("apple bat"))
    assert ["apple bat" in c.keep_senses for c in reached.value.args[0].concepts] == [True, True]


@pytest.mark.parametrize("several", [str, lambda text: [text], _one])
def test_one_attack_or_method_is_not_a_sequence_of_letters(
    several: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erase_sd.attacks.stage.attack", _raise_arguments)
    with pytest.raises(_ReachedError) as reached:
        erase_sd.attack("none", attacks=several("p4d"), detector_class=several("apple"))
    _, _, settings, classes, *_ = reached.value.args
    assert (settings.attacks, tuple(classes)) == (("p4d",), ("apple",))
    monkeypatch.setattr("erase_sd.comparison.runner.compare", _raise_arguments)
    with pytest.raises(_ReachedError) as reached:
        erase_sd.compare(several("apple"), several("ga"), attacks=several("p4d"))
    concepts, methods, named = reached.value.args
    assert (concepts, methods, named["attacks"]) == (("apple",), ("ga",), ("p4d",))


def test_a_detector_class_of_a_generator_is_that_of_every_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes: list[list[str]] = []

    def score(own: Run, _models: object, detector_class: Iterable[str], *_: object) -> None:
        classes.append(list(detector_class))
        raise erase_sd.RunError(own.name)

    runs = [Run(run_folder(name)) for name in ("apple", "pear")]
    monkeypatch.setattr("erase_sd.scoring.stage.runs_with_images", lambda: (runs, []))
    monkeypatch.setattr("erase_sd.scoring.stage.score", score)
    with pytest.raises(erase_sd.RunError):
        erase_sd.score(detector_class=_one("fruit"))
    assert classes == [["fruit"], ["fruit"]]
