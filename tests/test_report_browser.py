"""The report in a real browser, Debian's Chromium: mouse, keyboard, layout, accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from report_run import MARKUP, PAIRS, scored_run

from erase_sd import report
from erase_sd.models.presets import Models

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Addresses of a run's report and of the index."""
    folder = tmp_path_factory.mktemp("browser")
    run = scored_run(tiny, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path, index = (path.absolute() for path in report.write_all([run]))
    return path.as_uri(), index.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


class Browser:
    """The actions of the tests on a page."""

    def __init__(self, driver: Any, pages: tuple[str, str]) -> None:
        self.driver, (self.report, self.index) = driver, pages
        self.size(1440)
        self.scheme("light")
        self.open(self.report)

    def open(self, address: str) -> None:
        self.driver.get(address)

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """Sets the system's scheme, and waits until the page has heard of it."""
        heard = """
            const dark = matchMedia("(prefers-color-scheme: dark)");
            const changed = (done) => dark.addEventListener("change", () => setTimeout(done), {once: true});
            window.heard = dark.matches === arguments[0] ? Promise.resolve() : new Promise(changed);
        """
        self.driver.execute_script(heard, name == "dark")
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.execute_async_script("window.heard.then(arguments[0])")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def visible(self, selector: str) -> list[Any]:
        elements = self.driver.find_elements("css selector", selector)
        return [element for element in elements if element.is_displayed()]

    def prompts(self) -> list[str]:
        return [element.text for element in self.visible("#gallery .prompt")]

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()


@pytest.fixture
def browser(chromium: Any, pages: tuple[str, str]) -> Iterator[Browser]:
    chromium.get_log("browser")
    yield Browser(chromium, pages)
    chromium.execute_script("localStorage.clear()")
    assert chromium.get_log("browser") == []  # no error on the console after any of the tests


def test_filters_combine_and_count_the_matches(browser: Browser) -> None:
    assert len(browser.prompts()) == PAIRS
    browser.find("[data-filter=outcome][data-value=leaked]").click()
    assert browser.prompts() == ["a dog and an apple", "a green pomaceous fruit"]
    assert f"2 of {PAIRS} pairs match" in browser.find("#status").text
    browser.find("[data-filter=kind][data-value=synonym]").click()
    assert browser.prompts() == ["a green pomaceous fruit"]
    browser.find("[data-filter=prompts][data-value='2']").click()
    assert browser.prompts() == [] and browser.visible("#none")
    for group in ("outcome", "kind"):
        browser.find(f"[data-filter={group}][data-value='']").click()
    assert browser.prompts() == ["an orange", "a couch"]
    pressed = browser.visible("[data-filter][aria-pressed=true]")
    assert [button.text.split("\n")[0].rstrip("0123456789 ") for button in pressed] == [
        "retain", "all", "all",
    ]  # fmt: skip


def test_views_and_boxes_can_be_switched(browser: Browser) -> None:
    both = len(browser.visible("#gallery .frame"))
    assert both == 2 * PAIRS and browser.visible("#gallery .box")
    browser.find("button[data-view=erased]").click()
    assert len(browser.visible("#gallery .frame.erased")) == PAIRS
    assert not browser.visible("#gallery .frame.original")
    browser.find("button[data-view=original]").click()
    assert not browser.visible("#gallery .frame.erased")
    browser.find("button[data-view=both]").click()
    assert len(browser.visible("#gallery .frame")) == both
    browser.find("#boxes").click()
    assert browser.find("#boxes").get_attribute("aria-pressed") == "false"
    assert not browser.visible(".box")


def test_a_click_enlarges_a_pair_and_the_slider_wipes_between_its_images(
    browser: Browser,
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.find("#pair-1 .enlarge").click()
    assert browser.run("document.querySelector('#viewer').matches(':modal')")
    assert browser.find("#viewer-title").text == "a dog and an apple"
    assert browser.find("#viewer-original").text == "apple 0.90, dog 0.80"
    assert browser.find("#viewer-outcome").text == "leaked, damaged"
    clip = "getComputedStyle(document.querySelector('.stage .erased')).clipPath"
    assert browser.run(clip) == "inset(0px 0px 0px 50%)"
    browser.find("#split").click()
    browser.press(Keys.HOME)
    assert browser.run(clip) == "inset(0px 0px 0px 0%)"  # only the erased image
    browser.press(Keys.END)
    assert browser.run(clip) == "inset(0px 0px 0px 100%)"
    browser.find("#next").click()
    assert browser.find("#viewer-title").text == MARKUP
    browser.find("#close").click()
    assert not browser.visible("#viewer")


def test_the_keyboard_opens_a_pair_and_escape_returns_the_focus(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.run("document.querySelector('#pair-0 .enlarge').focus()")
    browser.press(Keys.TAB)
    assert browser.run("document.activeElement.dataset.pair") == "pair-1"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(Keys.ENTER)
    assert browser.visible("#viewer")
    browser.press(Keys.ESCAPE)
    assert not browser.visible("#viewer")
    assert browser.run("document.activeElement.dataset.pair") == "pair-1"


def test_previous_and_next_stay_within_the_matching_pairs(browser: Browser) -> None:
    browser.find("[data-filter=outcome][data-value=leaked]").click()
    browser.find("#pair-1 .enlarge").click()
    assert not browser.find("#previous").is_enabled()
    browser.find("#next").click()
    assert browser.find("#viewer-title").text == "a green pomaceous fruit"
    assert not browser.find("#next").is_enabled()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_overflows(browser: Browser, width: int) -> None:
    browser.size(width)
    for address in (browser.report, browser.index):
        browser.open(address)
        assert browser.run("innerWidth") == width
        assert browser.run("document.documentElement.scrollWidth") <= width
    browser.open(browser.report)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.find("button[data-view=erased]").click()
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("document.querySelector('#pair-2 .enlarge').click()")
    inside = (
        "(d => d.scrollWidth <= d.clientWidth && d.getBoundingClientRect().right <= innerWidth)"
    )
    assert browser.run(f"{inside}(document.querySelector('#viewer'))")


def test_wide_tables_can_be_scrolled_by_keyboard(browser: Browser) -> None:
    browser.size(360)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.run(f"{wide}.length") > 0
    assert browser.run(f"{wide}.every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))")


def test_a_printed_page_cuts_nothing_off_and_its_dots_and_labels_keep_their_colours(
    browser: Browser,
) -> None:
    browser.scheme("dark")
    browser.run("document.documentElement.setAttribute('data-theme', 'dark')")
    browser.size(720)  # a sheet of A4 or Letter with the browser's margins
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        style = "getComputedStyle(document.querySelector(arguments[0]))"
        for colours in (".track .dot.erased", ".legend .full", ".box.target b", ".tag.leaked"):
            assert browser.run(f"{style}.printColorAdjust", colours) == "exact"
        assert (
            browser.run(f"{style}.color", "body") == "rgb(28, 27, 25)"
        )  # light, whatever was chosen
        assert browser.run(f"{style}.overflowX", ".scroll") == "visible"
        assert browser.run(f"{style}.breakInside", ".pair") == "avoid"
        right = "[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right)"
        assert max(browser.run(right)) <= 720
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_markup_in_a_prompt_is_text(browser: Browser) -> None:
    assert MARKUP in browser.prompts()
    assert browser.run("document.querySelectorAll('.prompt *, .strip p *').length") == 0


def test_the_scheme_follows_the_system_until_the_user_chooses(browser: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(paper)
    browser.scheme("dark")
    dark = browser.run(paper)
    assert (light, dark) == ("rgb(251, 250, 247)", "rgb(21, 20, 19)")
    assert browser.find("#theme").get_attribute("aria-pressed") == "true"
    lines = "getComputedStyle(document.querySelector('.charts svg text')).fill"
    dark_text = browser.run(lines)
    browser.find("#theme").click()
    assert browser.run(paper) == light and browser.run(lines) != dark_text
    browser.open(browser.index)
    assert browser.run(paper) == light  # remembered from page to page


def test_every_control_and_image_has_an_accessible_name(browser: Browser) -> None:
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node["ignored"] and role in ("button", "link", "image", "slider", "table", "dialog"):
            assert node.get("name", {}).get("value", "").strip(), role
    roles = [n["role"]["value"] for n in nodes if not n["ignored"] and "role" in n]
    assert roles.count("image") >= 2 * PAIRS and "main" in roles and "navigation" in roles


def test_without_script_every_pair_is_shown_and_no_button_is_dead(
    browser: Browser,
) -> None:
    off = "Emulation.setScriptExecutionDisabled"
    browser.driver.execute_cdp_cmd(off, {"value": True})
    try:
        browser.open(browser.report)
        shown = [e.text for e in browser.driver.find_elements("css selector", "#gallery .prompt")]
        dead = browser.driver.find_elements("css selector", "button:not([hidden]):not(.script *)")
        assert len(shown) == PAIRS
    finally:
        browser.driver.execute_cdp_cmd(off, {"value": False})
    ids = {button.get_attribute("id") for button in dead}
    assert ids <= {"previous", "next", "close"}  # inside the closed dialog
