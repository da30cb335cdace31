"""The pages' commands, links and names exist, and their settings are the code's own."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from erase_sd.cli import app
from erase_sd.generation.settings import GenerateSettings
from erase_sd.methods.registry import METHODS
from erase_sd.unlearning.settings import UnlearnSettings

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "notebooks" / "results" / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", RESULTS]
TEXTS = {page: re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8")) for page in PAGES}
COMMANDS = sorted(
    {
        line
        for text in TEXTS.values()
        for line in re.findall(
            r"erase[-_]sd ((?:unlearn|generate|score|run|show|report|play|export|data|prompts|evaluate|explain|methods|compare|attack)\b[^\n#`&();]*)",
            text,
        )
    }
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands() -> dict[str, typer.core.TyperCommand]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined, no-any-return]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_has_the_options_it_is_given(line: str) -> None:
    name, *words = shlex.split(line)
    known = {
        option
        for parameter in commands()[name].params
        for option in [*parameter.opts, *parameter.secondary_opts]
    }
    assert {word for word in words if word.startswith("--")} <= known


def test_each_option_that_a_page_explains_is_an_option_of_a_command() -> None:
    known = {
        o
        for command in commands().values()
        for p in command.params
        for o in (*p.opts, *p.secondary_opts)
    }
    others = {
        "--help",
        "--nproc_per_node",
        "--dist",
        "--pretend-card",
        "--size",
        "--compare",
        "--repeats",
        "--job",
        "--counts",
        "--strengths",
        "--random-weights",
        "--packages",
        "--device",
        "--small",
        "--minutes",
        "--scenes",
    }  # torchrun, pytest, benchmarks, the GPU script, strengths of a LoRA, the U-Net's training
    for text in TEXTS.values():
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= known | others


def test_each_hyperparameter_of_a_command_is_one_of_its_method() -> None:
    settings = set(UnlearnSettings.__dataclass_fields__)
    specs = [
        word for line in COMMANDS for word in re.split(r"[ ,](?=[a-z-]+:)", line) if ":" in word
    ]
    assert len(specs) >= 5
    for spec in specs:
        method, _, pairs = spec.split()[0].partition(":")
        if method in METHODS:
            names = {pair.partition("=")[0] for pair in pairs.split(",")}
            assert names <= settings | set(METHODS[method].hyperparameters())


def test_the_main_job_is_in_the_readme() -> None:
    assert {line.split()[0] for line in COMMANDS} >= {"unlearn", "generate", "score", "run"}


def test_the_readme_fits_on_a_few_screens() -> None:
    assert README.read_text(encoding="utf-8").count("\n") <= 180


@each_page
def test_each_picture_page_and_heading_that_is_linked_exists(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", TEXTS[page]) if "://" not in t]
    assert targets or page.name == "CONTRIBUTING.md"
    for target in targets:
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


@each_page
def test_each_module_and_file_that_a_page_names_exists(page: Path) -> None:
    for module in re.findall(r"python -m (erase_sd[\w.]*)", TEXTS[page]):
        assert importlib.util.find_spec(module), module
    for file in re.findall(r"\b(?:erase_sd|tests|prompts)/[\w./]+\.\w+", TEXTS[page]):
        assert (ROOT / file).is_file(), file


def readme_python() -> str:
    """The README's Python example."""
    [block] = re.findall(
        r"(?:^    .*\n|^\n)+", TEXTS[README].split("The same in Python:")[1], re.MULTILINE
    )[:1]
    return re.sub(r"^    ", "", block.strip("\n"), flags=re.MULTILINE)


def test_the_python_of_the_readme_uses_what_the_package_offers() -> None:
    import erase_sd

    tree = ast.parse(readme_python())
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "erase_sd"
    }
    assert names == {"unlearn", "generate", "score", "apply", "concept_removed"}
    assert names <= set(erase_sd.__all__)


def test_the_python_of_the_readme_runs_in_an_empty_folder_given_a_run(
    shared_cache: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer training and denoising steps, and with two prompts of the file that comes along."""
    import functools

    import erase_sd
    from erase_sd.data import prompts

    Path("prompts").mkdir()
    lines = prompts.find_prompts("apple").read_text(encoding="utf-8").splitlines()[:2]
    Path("prompts/apple.txt").write_text("\n".join(lines))
    quick = {
        "steps": 2,
        "validate_every": 2,
        "forget_batch": 4,
        "retain_batch": 4,
        "max_residual": 2.0,
    }
    monkeypatch.setattr(erase_sd, "unlearn", functools.partial(erase_sd.unlearn, **quick))
    monkeypatch.setattr(erase_sd, "generate", functools.partial(erase_sd.generate, steps=1))
    exec(compile(readme_python(), "README.md", "exec"), {})
    assert "apple" in capsys.readouterr().out
    assert Path("without-apple.png").is_file()


def test_the_rooms_of_the_readme_are_the_folders_of_the_package() -> None:
    house = TEXTS[README].split("## The house")[1]
    rooms = set(re.findall(r"^      ([a-z]+)/ ", house, re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "erase_sd").glob("*/__init__.py")}
    assert rooms == folders


def test_the_seed_that_the_pages_name_is_the_default() -> None:
    for page in (README, RESULTS):
        assert f"seeds from {GenerateSettings().seed} on" in TEXTS[page]
