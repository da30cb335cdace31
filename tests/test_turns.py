"""The Python functions take turns: opening a model changes PyTorch's default dtype for all threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import pytest
import transformers
from faulty import side_by_side

import erase_sd
from erase_sd.api import turns
from erase_sd.models import quiet
from erase_sd.models.quiet import quiet_libraries, silence

FUNCTIONS: dict[str, tuple[str, Callable[[], Any]]] = {
    "unlearn": ("erase_sd.unlearning.stage.unlearn", lambda: erase_sd.unlearn("apple")),
    "generate": ("erase_sd.generation.stage.generate", lambda: erase_sd.generate("apple.txt")),
    "score": ("erase_sd.scoring.stage.score", lambda: erase_sd.score("apple")),
    "attack": ("erase_sd.attacks.stage.attack", lambda: erase_sd.attack("apple")),
    "evaluate": ("erase_sd.evaluation.stage.evaluate", lambda: erase_sd.evaluate("apple")),
    "explain": (
        "erase_sd.evaluation.explain.stage.explain", lambda: erase_sd.explain("apple"),
    ),
    "compare": (
        "erase_sd.comparison.runner.compare", lambda: erase_sd.compare("apple", "projection"),
    ),
    "load": ("erase_sd.models.erased.load", lambda: erase_sd.load("apple")),
    "apply": ("erase_sd.models.apply.apply", lambda: erase_sd.apply(object(), "apple")),
}  # fmt: skip


def _is_free() -> bool:
    """Whether another thread would enter one of the functions now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(turns.turn.lock.acquire, blocking=False).result()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_other_thread_works_at_the_same_time_and_an_error_lets_the_next_one_in(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, call = FUNCTIONS[name]

    def failing(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt("free" if _is_free() else "taken")

    Path("apple.txt").write_text("a dog\n", encoding="utf-8")
    monkeypatch.setattr(turns.turn, "lock", threading.RLock())
    monkeypatch.setattr(stage, failing)
    with pytest.raises(KeyboardInterrupt, match="taken"):
        call()
    assert _is_free()


def test_every_function_that_opens_a_model_takes_turns() -> None:
    functions = {name for name in erase_sd.__all__ if name[0].islower()}
    assert functions - {"concept_removed"} == set(FUNCTIONS)


def test_the_libraries_log_as_before_after_a_function_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libraries = (diffusers.utils.logging, transformers.utils.logging)

    def state() -> list[tuple[int, bool]]:
        return [(own.get_verbosity(), own.is_progress_bar_enabled()) for own in libraries]

    def failing(*_: Any) -> None:
        quiet_libraries()
        silence(diffusers.utils.logging)
        assert state() == [(logging.ERROR, False)] * 2
        raise KeyboardInterrupt

    monkeypatch.setattr(quiet, "_before", {})
    monkeypatch.setattr("erase_sd.models.erased.load", failing)
    earlier = state()
    try:
        diffusers.utils.logging.set_verbosity_info()
        transformers.utils.logging.set_verbosity_warning()
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.enable_progress_bar()
        with pytest.raises(KeyboardInterrupt):
            erase_sd.load("apple")
        assert state() == [(logging.INFO, False), (logging.WARNING, True)]
    finally:
        for own, (verbosity, bars) in zip(libraries, earlier, strict=True):
            own.set_verbosity(verbosity)
            (own.enable_progress_bar if bars else own.disable_progress_bar)()


def test_a_progress_function_may_call_another_and_the_libraries_stay_silent_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside: list[Any] = []

    def unlearning(_settings: Any, _models: Any, _run: Any, progress: Callable[..., None]) -> None:
        quiet_libraries()
        progress(1, 1, "")
        inside.append(transformers.utils.logging.get_verbosity())

    monkeypatch.setattr(quiet, "_before", {})
    monkeypatch.setattr("erase_sd.models.erased.load", lambda *_: quiet_libraries() or "loaded")
    monkeypatch.setattr("erase_sd.unlearning.stage.unlearn", unlearning)
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_info()
    try:
        with pytest.raises(erase_sd.RunError):  # nothing was unlearned
            erase_sd.unlearn("apple", progress=lambda *_: inside.append(erase_sd.load("apple")))
        inside.append(transformers.utils.logging.get_verbosity())
    finally:
        transformers.utils.logging.set_verbosity(before)
    assert inside == ["loaded", logging.ERROR, logging.INFO]


@pytest.mark.forks(tensors=False)
def test_a_fork_does_not_wait_for_a_thread_that_it_lacks() -> None:
    taken, ended = threading.Event(), threading.Event()

    def occupy() -> None:
        with turns.turn.lock:
            taken.set()
            ended.wait()

    def work(_: int) -> None:
        assert turns.turn.lock.acquire(blocking=False)

    thread = threading.Thread(target=occupy)
    thread.start()
    taken.wait()
    try:
        assert side_by_side(1, work) == [0]
    finally:
        ended.set()
        thread.join()
