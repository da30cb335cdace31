"""A model card shows the ladder with a picture of each rung, in a folder that is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from report_run import scored_run

from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.report.ladder_pictures import ladder_section
from erase_sd.run import Run


@pytest.fixture(scope="module")
def run(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored_run(tiny, tmp_path_factory.mktemp("ladder"))


def test_every_rung_with_images_has_a_picture_of_both_models(run: Run, tmp_path: Path) -> None:
    text = ladder_section(run, tmp_path / "pictures")
    assert "| rung | n | original | erased |" in text
    assert "| apple, prompts that name it | 4 | 75 %" in text
    links = re.findall(r"!\[[^]]*: original, erased\]\((.+?)\)", text)
    assert links == ["pictures/apple-plain.png", "pictures/apple-synonym.png"]
    for link in links:
        with Image.open(tmp_path / link) as picture:
            assert picture.width > picture.height > 0


def test_the_model_card_of_a_hub_folder_links_only_to_files_in_it(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    out = export(run, tiny, "hub-folder", tmp_path / "hub", pictures=ladder_section)
    text = (out / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((.+?)\)", text)
    assert len(links) == 2 and all((out / link).is_file() for link in links)
    assert "http" not in text and str(tmp_path) not in text


def test_a_run_that_is_not_scored_has_no_ladder(erased_run: Run, tmp_path: Path) -> None:
    assert ladder_section(erased_run, tmp_path / "pictures") == ""
    assert not (tmp_path / "pictures").exists()
