"""The page of `erase-sd play` in a real browser, and requests that its server refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report_run import image_record

from erase_sd.data.concept import Concept
from erase_sd.files import write_records
from erase_sd.models.presets import Models, resolve
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed (extra test)"
    )
    for name in ("gradio", "selenium")
]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PROXY = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
"""A proxy for everything, which does not answer."""
PATIENCE = 300  # seconds for any reaction of the page, enough for a busy machine


@pytest.fixture(scope="module")
def address(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `erase-sd play` with a tiny run, in its own process on a free port."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        short = {"steps": 2, "forget_batch": 4, "retain_batch": 4, "retain_floor": 0.0}
        models = resolve("mini", tiny.model, tiny.clips, tiny.data, tiny.detector)
        unlearn(
            UnlearnSettings(concepts=(Concept("apple"),), **short),
            models,
            Run(folder / "runs/apple"),
        )
    example = image_record("images/original/apple-0000.png", prompt="a red apple")
    write_records(folder / "runs/apple/images.jsonl", [example])
    words = ["play", "--run", "apple", "--port", "0"]
    with (folder / "stderr").open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "erase_sd", *words], cwd=folder, text=True,
            env=os.environ | PROXY | {"GRADIO_TEMP_DIR": str(folder / "gradio"), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            line = server.stdout.readline().strip()
            assert line.startswith("http://127.0.0.1:"), (folder / "stderr").read_text()
            yield line
            assert (folder / "stderr").read_text() == ""
            assert not [path for path in (folder / "gradio").rglob("*") if path.is_file()]
        finally:
            server.terminate()
            server.communicate()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """Headless Chromium with an empty profile and no page open."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and its driver are not installed (apt: chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={tmp_path / 'profile'}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield chrome
    finally:
        chrome.quit()


def wait(browser: Chrome, css: str, text: str = "") -> list[Any]:
    """The elements at `css`, once there are some and the first one contains `text`."""
    from selenium.common import StaleElementReferenceException
    from selenium.webdriver.support.wait import WebDriverWait

    def matching(chrome: Chrome) -> list[Any]:
        elements = chrome.find_elements("css selector", css)
        return elements if elements and text in elements[0].text else []

    ignored = (StaleElementReferenceException,)
    return WebDriverWait(browser, PATIENCE, ignored_exceptions=ignored).until(matching, css)


def type_in(browser: Chrome, field: str, text: str) -> None:
    """Replaces the contents of a field by `text`."""
    from selenium.webdriver.common.keys import Keys

    box = wait(browser, f"#{field} :is(input, textarea)")[0]
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text or Keys.BACKSPACE)


def shown(browser: Chrome) -> list[str]:
    """Alternative texts of the images that have loaded."""
    script = "return [...document.querySelectorAll('.pair img')].filter(i => i.naturalWidth).map(i => i.alt)"
    return list(browser.execute_script(script))


def test_a_prompt_and_a_seed_give_two_images_and_invalid_ones_a_message(
    address: str, browser: Chrome
) -> None:
    browser.get(address)
    prompt = "an apple <b>${1+1}{{value}}</b>"
    type_in(browser, "prompt", prompt)
    type_in(browser, "seed", "12")
    wait(browser, "#generate")[0].click()
    wait(browser, ".verdict", "apple")
    alts = shown(browser)
    assert [alt.split(";")[0] for alt in alts] == [
        f"original image of: {prompt}",
        f"erased image of: {prompt}",
    ]
    for field, text, message in (
        ("seed", "twelve", "seed 'twelve': needs a whole number from 0 to 2**63 - 1"),
        ("seed", "-1", "seed -1: needs a whole number from 0 to 2**63 - 1"),
        ("seed", "1", ""),
        ("prompt", "", "the prompt is empty; type at least one word"),
        ("prompt", "apple " * 40, "the prompt: 42 tokens, at most 32"),
    ):
        type_in(browser, field, text)
        if message:
            wait(browser, "#generate")[0].click()
            wait(browser, ".message", message)
            assert shown(browser) == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_a_click_on_an_example_generates_it_and_no_request_leaves_the_machine(
    address: str, browser: Chrome
) -> None:
    browser.get(address)
    wait(browser, "button.gallery-item", "a red apple")[0].click()
    wait(browser, ".verdict", "apple")
    assert [alt.split(";")[0] for alt in shown(browser)] == [
        "original image of: a red apple",
        "erased image of: a red apple",
    ]
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith(address) for url in requests)
    own = (address, "data:", "blob:", "chrome://")  # the last is the browser's own empty first tab
    assert [url for url in requests if not url.startswith(own)] == []


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_overflows(address: str, browser: Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)
    wait(browser, ".pair h2", "original")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    """The HTTP status of a GET, or of a POST of `data`."""
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_page_opens_where_a_proxy_is_set_that_does_not_reach_it(address: str) -> None:
    assert status(address) == 200


def test_the_server_neither_serves_nor_accepts_files(address: str) -> None:
    assert status(address) == 200
    for path in ("/etc/passwd", "runs/apple/run.json", "runs/apple/erased/erase.json"):
        assert status(f"{address}gradio_api/file={path}") == 403
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    )
    kind = "multipart/form-data; boundary=x"
    assert status(f"{address}gradio_api/upload", body, **{"Content-Type": kind}) == 413


def test_no_endpoint_but_the_page_is_public(address: str) -> None:
    with urllib.request.urlopen(f"{address}gradio_api/info", timeout=PATIENCE) as answer:
        assert json.load(answer) == {"named_endpoints": {}, "unnamed_endpoints": {}}
