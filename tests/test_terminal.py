"""What is shown only in a terminal."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from erase_sd.cli.tables import print_table
from erase_sd.cli.terminal import Bar, facts_table, methods_list, rates_table
from erase_sd.methods.descriptions import describe
from erase_sd.run.measurements import ScoresRecord
from erase_sd.scoring.matching import Match
from erase_sd.scoring.rates import THRESHOLD, compare_rates


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


@pytest.mark.parametrize("run", ["apple[v2]", "apple+bicycle+chair+elephant+orange"])
def test_a_table_of_rates_shows_the_whole_name_of_each_run(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rates = compare_rates(run, "apple", [Match("p", "target", "apple", 0.9, 0.0)])
    scores = ScoresRecord(
        threshold=THRESHOLD, detectors=(), rates=tuple(rates), by_class=(), sweep=()
    )
    rates_table(scores, rates)
    table = capsys.readouterr().out.split("Rates of")[0].splitlines()
    [rule] = [number for number, line in enumerate(table) if "─" in line]
    [width] = [line.index("object") for line in table[:rule] if "object" in line]
    assert "".join(line[:width].strip() for line in table[rule + 1 :]) == run


def test_scores_without_a_rate_are_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    scores = ScoresRecord(threshold=THRESHOLD, detectors=(), rates=(), by_class=(), sweep=())
    rates_table(scores, scores.rates)
    assert "original %" in capsys.readouterr().out


LINES = [["apple", "retained, same prompts", "40", "92.5 [80.1, 97.4]", "100.0 [91.2, 100.0]"]]


def printed(width: int) -> str:
    file = io.StringIO()
    headings = ("method", "object", "n", "original %", "erased - reference")
    print_table(Console(file=file, width=width), "Rates", headings, LINES, text_columns=2)
    return file.getvalue()


def test_a_narrow_terminal_wraps_text_and_no_interval() -> None:
    assert "retained, same prompts" in printed(100)
    narrow = printed(66)
    assert "retained, same prompts" not in narrow and max(map(len, narrow.splitlines())) <= 66
    assert "92.5 [80.1, 97.4]" in narrow and "100.0 [91.2, 100.0]" in narrow


@pytest.mark.parametrize("width", [60, 80])
def test_numbers_wrap_before_the_words_of_a_name_are_broken(width: int) -> None:
    headings = (
        "attack",
        "concept",
        "reads",
        "n",
        "attacked %",
        "no attack %",
        "original, same input %",
    )
    line = ("relearning, 40 steps, new word", "elephant", "white box", "50",
            "38 [14, 69]", "100 [68, 100]", "100 [68, 100]")  # fmt: skip
    file = io.StringIO()
    print_table(Console(file=file, width=width), "Attacks", headings, [line], text_columns=4)
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert all(word in shown for cell in line for word in cell.split())


def test_a_name_in_letters_of_two_columns_is_not_broken_where_there_is_room() -> None:
    name, line = "\u7ea2\u8272\u7684\u5927\u82f9\u679c", "relearning, 40 steps, new word"
    file = io.StringIO()
    headings = ("attack", "concept", "attacked %")
    print_table(Console(file=file, width=45), "Attacks", headings, [(line, name, "38 [14, 69]")], 2)
    assert name in file.getvalue()


def test_the_narrowest_terminal_loses_no_character() -> None:
    shown = printed(30)
    assert max(map(len, shown.splitlines())) <= 30
    assert Counter("".join(LINES[0]).replace(" ", "")) <= Counter(shown)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_columns_of_numbers_that_do_not_fit_follow_below_with_unbroken_headings(width: int) -> None:
    headings = (
        "method",
        "target",
        *(f"retained, {where} prompts" for where in ("same", "other")),
        *(f"prediction, {which}" for which in ("forget", "retain")),
        *(f"R@1, {which}" for which in ("forget", "retain")),
        "harmonic mean",
        "runs",
    )
    line = ("graddiff:learning_rate=0.0001", *(f"{n}0.5" for n in range(1, 9)), "3")
    file = io.StringIO()
    print_table(Console(file=file, width=width), "Settings", headings, [line], text_columns=1)
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert {*line, *(word for heading in headings for word in heading.split())} <= {*shown.split()}
    assert shown.count("Settings") == 1 and all(shown.count(cell) == 1 for cell in line[1:-1])


def test_a_heading_that_is_too_wide_breaks_alone() -> None:
    headings = ("method", "apple", "apple+bicycle+chair+elephant", "retained, same prompts", "runs")
    line = ("cliperase-anchored", "0.0 \u00b1 0.1", "2.0 \u00b1 0.3", "99.0 \u00b1 0.4", "12")
    file = io.StringIO()
    print_table(Console(file=file, width=40), "Rates", headings, [line], text_columns=1)
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= 40 and all(cell in shown for cell in line)
    assert {*headings[1].split(), *headings[3].split(), headings[4]} <= {*shown.split()}


def test_a_table_of_facts_shows_the_whole_name_of_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    facts_table("Captions", [("caption file", "results_of_the_second_annotation_2014.token")])
    shown = capsys.readouterr().out.splitlines()[2:-1]
    assert "".join(line.split("\u2502")[2].strip() for line in shown).endswith("_2014.token")


def test_the_names_of_hyperparameters_are_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    description = describe("uce")
    methods_list([description])
    shown = capsys.readouterr().out
    assert "\u2026" not in shown
    assert {parameter.name for parameter in description.hyperparameters} <= {*shown.split()}
