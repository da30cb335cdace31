"""What is shown only in a terminal."""

from __future__ import annotations

import pytest

from erase_sd.cli.terminal import Bar


def test_a_bar_counts_from_its_first_update(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats any stream as a terminal
    with Bar("generating") as progress:
        progress.progress.refresh()
        progress(1, 3, "an apple")
    shown = capsys.readouterr().err
    assert "generating" in shown and "1/3" in shown and "an apple" in shown


def test_a_quiet_bar_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bar("generating", quiet=True) as progress:
        progress(1, 3, "an apple")
    assert capsys.readouterr().err == ""
