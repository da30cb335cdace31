"""The notebooks run as they are, and their committed outputs are those of a run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed (extra test)"
    )
    for name in ("nbformat", "nbclient", "ipykernel")
]
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path: Path) -> list[Any]:
    """The code cells of a notebook that is valid."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_the_three_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_erase_a_concept",
        "02_compare_methods",
        "03_real_stable_diffusion",
    ]


@each
def test_every_cell_compiles_and_every_imported_name_exists(path: Path) -> None:
    import erase_sd

    for cell in code_of(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), cell.source
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "erase_sd":
                assert node.attr in erase_sd.__all__


@each
def test_files_and_pages_that_a_notebook_names_exist(path: Path) -> None:
    import re

    named = re.findall(
        r"\]\(([^)]+)\)|\"(\.\./prompts/[^\"]+)\"", path.read_text().replace("\\", "")
    )
    assert named
    for link, prompts in named:
        assert (path.parent / (link or prompts)).is_file()


@each
def test_committed_outputs_are_those_of_one_clean_run(path: Path) -> None:
    cells = code_of(path)
    run = "run: jupyter execute --inplace notebooks/*.ipynb"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), run
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    text = path.read_text(encoding="utf-8")
    for place in ("/home/", "/root/", "/tmp/", "/Users/", str(ROOT), str(Path.home())):
        assert place not in text
    assert path.stat().st_size < 1_500_000


def execute(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs a copy of a notebook beside a copy of `prompts/`; returns its code cells."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it, jupyter_core warns
    shutil.copytree(ROOT / "prompts", folder / "prompts")
    (folder / "notebooks").mkdir()
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=None, resources={"metadata": {"path": str(folder / "notebooks")}}
    ).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    return cells


def pictures_in(cells: list[Any]) -> int:
    return sum("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)


def test_without_a_gpu_the_third_prints_what_it_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cells = execute(NOTEBOOKS[2], tmp_path, monkeypatch)
    printed = [output.text for cell in cells for output in cell.outputs]
    assert printed[1].startswith("No CUDA device here")
    assert printed[2:] == [
        "Skipped: unlearn, generate, score.\n",
        "Skipped: the table and the pictures.\n",
    ]


@pytest.mark.slow
def test_the_first_erases_the_apple_and_shows_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = execute(NOTEBOOKS[0], tmp_path, monkeypatch)
    assert pictures_in(cells) == 2
    assert "| apple | apple | 50 |" in str(cells)


@pytest.mark.slow
def test_the_second_lists_every_method_and_races_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.methods.registry import METHODS

    cells = execute(NOTEBOOKS[1], tmp_path, monkeypatch)
    assert pictures_in(cells) == 2
    assert all(f"| `{method}` |" in str(cells) for method in METHODS)
    for method in ("cliperase", "cliperase-anchored"):
        assert f"| {method} | apple | 50 |" in str(cells)
