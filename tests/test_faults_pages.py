"""Prompts, names and words that are HTML: shown as they are in a real browser, and never run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from faulty import Faults
from PIL import Image, PngImagePlugin
from report_run import scored_run
from test_ladder import attack_record
from test_report_browser import CHROMIUM, DRIVER
from test_report_browser import chromium as chromium

from erase_sd import report
from erase_sd.files import hash_file, write_json
from erase_sd.models.presets import Models
from erase_sd.report.contact_sheet import contact_sheet
from erase_sd.report.data import read_report_data
from erase_sd.report.image_pairs import image_pairs_of
from erase_sd.run import Run
from erase_sd.run.measurements import AttacksRecord

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name == "nt", reason="names files as Windows does not allow"),
]
browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
PAYLOADS = (
    "<script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 2'>",
    "</script><svg onload='window.owned = 3'>",
    "\"><a id=owned href='javascript:window.owned = 4'>apple</a>",
    "' onmouseover='window.owned = 5' x='",
    "{{ 7 * 7 }} ${7 * 7} <!-- --> ]]> &lt;b&gt;",
)
NAME = "<img src=x onerror='window.owned = 6'>"


@pytest.fixture(scope="module")
def scored(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored_run(tiny, tmp_path_factory.mktemp("pages"))


@pytest.fixture
def malicious(scored: Run, tmp_path: Path) -> Run:
    """A run whose folder, prompts, method and attacks are HTML."""
    import shutil

    run = Run(Path("runs") / NAME)
    shutil.copytree(scored.folder, run.folder)
    lines = []
    for number, line in enumerate((run.folder / "images.jsonl").read_text().splitlines()):
        record = json.loads(line)
        payload = PAYLOADS[number % len(PAYLOADS)]
        record["text"] = record["pair"]["caption"] = f"{payload} {record['pair']['caption']}"
        lines.append(json.dumps(record))
    (run.folder / "images.jsonl").write_text("\n".join(lines))
    text = (run.folder / "run.json").read_text()
    record = json.loads(text)
    record["stages"]["unlearn"]["settings"]["method"] = PAYLOADS[0]
    record["models"]["model"] = PAYLOADS[1]
    write_json(run.folder / "run.json", record)
    row = dataclasses.replace(attack_record("p4d", 3), found=PAYLOADS, row=PAYLOADS[2])
    attacks = AttacksRecord(
        threshold=0.25, detector=PAYLOADS[3], detector_sha256="x",
        erased_sha256=run.erasure().weights_sha256, rows=(row,),
    )  # fmt: skip
    write_json(run.folder / "attacks.json", dataclasses.asdict(attacks))
    return run


def test_no_payload_is_an_element_of_a_page(malicious: Run, faults: Faults) -> None:
    for path in report.write_all([malicious]):
        page = path.read_text()
        for payload in (*PAYLOADS[:4], NAME):
            with faults("malicious files", f"{path.name}: {payload[:24]} is escaped"):
                assert payload not in page


@browser
@pytest.mark.slow
def test_no_payload_runs_in_a_browser(malicious: Run, chromium: Any, faults: Faults) -> None:
    pages = [path.absolute() for path in report.write_all([malicious])]
    owned = "return [window.owned ?? 0, document.querySelectorAll('#owned, img[src=x]').length]"
    for path in pages:
        with faults("malicious files", f"{path.name} in Chromium: its prompts and names"):
            chromium.get(path.as_uri())
            assert chromium.execute_script(owned) == [0, 0]
    chromium.get(pages[0].as_uri())
    count = chromium.execute_script("return document.querySelectorAll('#gallery .enlarge').length")
    assert count > 0
    for number in range(count):
        with faults("malicious files", f"the viewer in Chromium: pair {number}"):
            chromium.execute_script(f"document.querySelector('#pair-{number} .enlarge').click()")
            shown = chromium.find_element("css selector", "#viewer-title").text
            assert any(" ".join(p.split()) in " ".join(shown.split()) for p in PAYLOADS), shown
            assert chromium.execute_script(owned) == [0, 0]
            chromium.find_element("css selector", "#close").click()
    with faults("malicious files", "every filter in Chromium"):
        chromium.execute_script(
            "document.querySelectorAll('[data-filter]').forEach(b => b.click())"
        )
        assert chromium.execute_script(owned) == [0, 0]


def bomb(path: Path) -> None:
    """A PNG of a few kilobytes that inflates to 200 million pixels."""
    Image.new("1", (20_000, 10_000)).save(path, "PNG", compress_level=9)


def inflating_text(path: Path) -> None:
    """A PNG with a compressed comment that inflates to 80 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 80_000_000, zip=True)
    Image.new("RGB", (64, 64)).save(path, "PNG", pnginfo=info)


@pytest.mark.parametrize("damage", [bomb, inflating_text])
def test_an_image_that_its_hash_vouches_for_may_still_be_a_bomb(
    scored: Run, damage: Any, faults: Faults
) -> None:
    import shutil

    run = Run(Path("runs/apple"))
    shutil.copytree(scored.folder, run.folder)
    image = run.images()[0]
    file = run.folder / image.file
    damage(file)
    rows = (run.folder / "images.jsonl").read_text()
    (run.folder / "images.jsonl").write_text(rows.replace(image.sha256, hash_file(file)))
    with faults("malicious files", f"report: {damage.__name__}"):
        report.write(run)
        pairs = image_pairs_of(read_report_data(run))
        assert [i.picture.problem for p in pairs for i in p.images if i.picture.problem] == [
            "not readable"
        ]
    with faults("malicious files", f"contact sheet: {damage.__name__}"):
        from erase_sd.errors import EraseError

        with pytest.raises(EraseError, match="not a readable image"):
            contact_sheet([run], Path("sheet.png"))
