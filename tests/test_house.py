"""The house keeps its order: rooms import downward, files and functions stay small, errors name options."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "erase_sd").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
ROOMS = (
    "errors", "files", "reading", "termination", "child", "json_process", "runtime", "sharing", "checked", "plotting", "data", "run", "mini", "models", "methods", "unlearning",
    "generation", "detection", "scoring", "attacks", "evaluation", "report", "comparison", "mini.training",
    "bench", "api", "__init__", "cli", "__main__",
)  # fmt: skip
"""A room imports from those before it."""
POSIX = ("fcntl", "resource", "pwd", "grp", "termios")
FUNCTIONS = [
    (name, node)
    for name, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def room_of(module: str) -> str:
    """`mini.training` for `erase_sd.mini.training.build`: the longest room that holds the module."""
    inside = module.removeprefix("erase_sd").removeprefix(".") or "__init__"
    return max((r for r in ROOMS if f"{inside}.".startswith(f"{r}.")), key=len)


def imports(module: str, for_types: bool = True) -> Iterator[str]:
    """Everything that a module imports, by full name, also inside functions.

    With `for_types` also under `TYPE_CHECKING`.
    """
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    only_types = {
        id(node)
        for block in TREES[module].body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(TREES[module]):
        if id(node) in only_types and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from (
                full if (full := f"{base}.{alias.name}") in MODULES else base
                for alias in node.names
            )


GRAPH = {name: {found for found in imports(name) if found in MODULES} - {name} for name in MODULES}


def test_every_module_is_in_a_room() -> None:
    for module in MODULES:
        room_of(module)


def test_imports_run_downward_only() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        ahead = [module]
        while ahead:
            new = GRAPH[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    assert [module for module in MODULES if module in reached(module)] == []


def test_only_the_presets_know_the_miniature_world() -> None:
    assert {
        module
        for module, others in GRAPH.items()
        if not room_of(module).startswith("mini")
        for other in others
        if room_of(other).startswith("mini")
    } == {"erase_sd.models.presets"}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("diffusers", {"runtime", "models", "mini.training", "bench"}),
        ("ultralytics", {"detection", "mini.training"}),
    ],
)
def test_foreign_libraries_stay_at_the_edge(library: str, rooms: set[str]) -> None:
    users = {
        m for m in MODULES if library in {f.split(".")[0] for f in imports(m, for_types=False)}
    }
    assert {room_of(module) for module in users} <= rooms


def test_files_and_functions_fit_in_the_head() -> None:
    assert [n for n, p in MODULES.items() if p.read_text(encoding="utf-8").count("\n") > 250] == []
    lengths = {f"{name}.{f.name}": (f.end_lineno or 0) - f.lineno + 1 for name, f in FUNCTIONS}
    assert {name: length for name, length in lengths.items() if length > 55} == {}


def test_every_public_function_has_a_docstring() -> None:
    nested = {id(node) for _, outer in FUNCTIONS for node in ast.walk(outer) if node is not outer}
    in_class = {
        id(node)
        for tree in TREES.values()
        for outer in ast.walk(tree)
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
    }
    assert [
        f"{name}.{node.name}"
        for name, node in FUNCTIONS
        if not node.name.startswith("_") and not {id(node)} & (nested | in_class)
        if not ast.get_docstring(node)
    ] == []


def test_every_field_of_an_error_is_an_option_of_a_command() -> None:
    import typer

    from erase_sd.cli import app
    from erase_sd.cli.app import option_of

    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    fields = {
        keyword.value.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "field" and isinstance(keyword.value, ast.Constant)
        if isinstance(keyword.value.value, str)
    }
    assert "learning_rate" in fields
    assert [
        field
        for field in sorted(fields)
        if not any(str(option_of(command, field)).startswith("--") for command in commands)
    ] == []


def test_no_module_needs_posix_to_be_imported() -> None:
    at_import = {
        f"{module} imports {library}"
        for module, tree in TREES.items()
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for library in [*(a.name for a in node.names), getattr(node, "module", None)]
        if library in POSIX
    }
    assert at_import == set()


def test_help_works_without_the_modules_of_posix() -> None:
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({POSIX!r}))  # importing one raises ImportError\n"
        "sys.argv = ['erase-sd', '--help']\n"
        "from erase_sd.cli import main\nmain()\n"
    )
    # Without fcntl, filelock warns that it has soft locks only; Windows has locks of its own.
    warned = "ignore:only soft file lock"
    answer = subprocess.run(
        [sys.executable, "-W", warned, "-c", code], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "unlearn" in answer.stdout


def test_every_imported_package_is_declared() -> None:
    requirements = [*PROJECT["project"]["dependencies"]]
    requirements += [
        requirement
        for extra in ("play",)
        for requirement in PROJECT["project"]["optional-dependencies"][extra]
    ]
    declared = {re.split(r"[<>=!;\[ ]", requirement)[0] for requirement in requirements}
    assert all(re.search(r">=\d", requirement) for requirement in requirements)
    names = packages_distributions()
    used = {found.split(".")[0] for module in MODULES for found in imports(module)}
    foreign = used - sys.stdlib_module_names - {"erase_sd"}
    undeclared = [
        package
        for package in sorted(foreign)
        if not {re.sub(r"[_.]", "-", n).lower() for n in names.get(package, [package])} & declared
    ]
    assert undeclared == []


def test_the_wheel_holds_every_package_and_the_prompts() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES.values()}
    assert setuptools["packages"] == sorted(folders | {"erase_sd.prompts"})
    assert setuptools["package-dir"] == {"erase_sd.prompts": "prompts"}
    packaged = {
        ROOT / setuptools["package-dir"].get(package, package.replace(".", "/")) / pattern
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
    }
    files = {file for pattern in packaged for file in ROOT.glob(str(pattern.relative_to(ROOT)))}
    expected = {*(ROOT / "prompts").iterdir(), *(ROOT / "erase_sd").rglob("*")}
    left_out = {
        path for path in expected - files if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert left_out == set()


def test_the_version_has_one_source() -> None:
    assert version("erase-sd") == PROJECT["project"]["version"]
    literal = PROJECT["project"]["version"]
    assert [n for n, p in MODULES.items() if literal in p.read_text(encoding="utf-8")] == []


def test_no_name_has_two_meanings() -> None:
    """Commands and Python functions are named after the stage that they call, and may be."""
    meanings: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        if room_of(module) not in ("api", "cli"):
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "main":
                    meanings.setdefault(node.name, []).append(module)
    assert {n: m for n, m in meanings.items() if len(m) > 1 and not n.startswith("_")} == {}


def test_no_page_names_an_address_of_the_project() -> None:
    """The repository is published nowhere yet; a link to it would lead nowhere."""
    pages = [*MODULES.values(), *ROOT.glob("*.md"), ROOT / "pyproject.toml"]
    pages += (ROOT / "notebooks").rglob("*.md")
    linked = re.compile(r"https?://[\w./-]*erase-sd")
    assert [p.name for p in pages if linked.search(p.read_text(encoding="utf-8"))] == []
