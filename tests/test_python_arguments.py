"""Arguments of the Python functions: one text is one text, and any iterable is several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import erase_sd
from erase_sd import runtime
from erase_sd.attacks.settings import AttackSettings
from erase_sd.data.concept import Concept
from erase_sd.generation.settings import MAX_SEED, GenerateSettings
from erase_sd.models.presets import resolve
from erase_sd.run import Run, run_folder


class _ReachedError(Exception):
    """A stage was called, with these arguments."""


def _arguments_of(stage: str, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    """What `call` passes to the function `stage`: positional arguments, then a dict of the named ones."""

    def reached(*arguments: Any, **named: Any) -> None:
        raise _ReachedError(*arguments, named)

    monkeypatch.setattr(stage, reached)
    with pytest.raises(_ReachedError) as error:
        call()
    return error.value.args


def _one(text: str) -> Iterator[str]:
    """A generator, which can be read only once."""
    yield text


@pytest.mark.parametrize("several", [str, lambda text: [text], _one])
def test_one_synonym_or_kept_sense_is_not_a_sequence_of_letters(
    several: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, *_ = _arguments_of(
        "erase_sd.unlearning.stage.unlearn", monkeypatch,
        lambda: erase_sd.unlearn("bicycle", synonyms=several("bike"), keep_senses=several("bmx")),
    )  # fmt: skip
    [concept] = settings.concepts
    assert (concept.synonyms, concept.keep_senses) == (("bike",), ("bmx",))


def test_every_concept_keeps_the_senses_of_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, *_ = _arguments_of(
        "erase_sd.unlearning.stage.unlearn", monkeypatch,
        lambda: erase_sd.unlearn(["apple", "bat"], keep_senses=_one("apple bat")),
    )  # fmt: skip
    assert ["apple bat" in c.keep_senses for c in settings.concepts] == [True, True]


@pytest.mark.parametrize("several", [str, lambda text: [text], _one])
def test_one_attack_or_method_is_not_a_sequence_of_letters(
    several: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, settings, classes, *_ = _arguments_of(
        "erase_sd.attacks.stage.attack", monkeypatch,
        lambda: erase_sd.attack("none", attacks=several("p4d"), detector_class=several("apple")),
    )  # fmt: skip
    assert (settings.attacks, tuple(classes)) == (("p4d",), ("apple",))
    concepts, methods, named = _arguments_of(
        "erase_sd.comparison.runner.compare", monkeypatch,
        lambda: erase_sd.compare(several("apple"), several("ga"), attacks=several("p4d")),
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: GenerateSettings(images_per_prompt=1.5), "images_per_prompt: needs a whole number, got 1.5"),
        (lambda: GenerateSettings(seed="7"), "seed: needs a whole number, got '7'"),
        (lambda: GenerateSettings(guidance=True), "guidance: needs a number, got True"),
        (lambda: AttackSettings(images=2.5), "images: needs a whole number, got 2.5"),
        (lambda: Concept("bicycle", "bike"), "synonym bike: needs a tuple of texts, got one text"),
    ],
)  # fmt: skip
def test_a_setting_of_another_type_is_not_converted(settings: Any, message: str) -> None:
    with pytest.raises(erase_sd.SettingError, match=f"^{message}$"):
        settings()


def test_a_whole_number_is_a_number() -> None:
    assert GenerateSettings(guidance=7).guidance == 7


def test_the_bounds_of_a_setting_are_allowed_and_nothing_beyond() -> None:
    bounds = {
        "images_per_prompt": (1, 10_000), "steps": (1, 1000), "batch": (1, 1000),
        "guidance": (1, 100), "seed": (0, MAX_SEED - 1),
    }  # fmt: skip
    for name, (least, most) in bounds.items():
        for value in (least, most):
            assert getattr(GenerateSettings(**{name: value}), name) == value
        for value in (least - 1, most + 1):
            rule = f"{name}: needs {least} to {most:,}, got {value}"
            with pytest.raises(erase_sd.SettingError) as error:
                GenerateSettings(**{name: value})
            assert str(error.value).replace(",", "") == rule.replace(",", "")


def test_a_setting_that_is_given_comes_before_the_models_own() -> None:
    own = {"steps": 3, "sampler": "ddim", "guidance": 2.0, "dtype": "fp32", "seed": 7}
    settings: Any = GenerateSettings(**own)
    assert settings.with_defaults_of(resolve()).items() >= own.items()
    assert GenerateSettings().with_defaults_of(resolve())["dtype"] == runtime.precision()
