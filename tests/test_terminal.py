"""What is shown in a terminal alone."""

from __future__ import annotations

import pytest

from erase_sd.cli.terminal import Bar


def test_a_bar_waits_for_its_first_step_and_then_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    with Bar("drawing") as advance:
        advance.progress.refresh()
        advance(1, 3, "an apple")
    shown = capsys.readouterr().err
    assert "drawing" in shown and "1/3" in shown and "an apple" in shown
