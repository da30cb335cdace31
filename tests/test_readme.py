"""The README's commands and pictures exist, and its settings are the code's own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from erase_sd.cli import app
from erase_sd.generation.stage import Settings

ROOT = Path(__file__).parents[1]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "README.md").read_text(encoding="utf-8"))  # long lines joined
COMMANDS = sorted(
    set(
        re.findall(
            r"erase[-_]sd ((?:unlearn|generate|score|run|show|report|play|export|data|prompts|evaluate|explain|methods|compare)\b[^\n#`&]*)",
            TEXT,
        )
    )
)


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_of_the_readme_has_the_options_it_is_given(line: str) -> None:
    name, *words = shlex.split(line)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_three_commands_and_the_main_job_are_there() -> None:
    assert {line.split()[0] for line in COMMANDS} >= {"unlearn", "generate", "score", "run"}


def test_each_picture_and_page_that_is_linked_exists() -> None:
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert len(linked) >= 4
    for target in linked:
        assert (ROOT / target).is_file(), target


def test_the_seed_that_the_readme_names_is_the_default() -> None:
    assert f"seeds from {Settings().seed} on" in TEXT
