"""The page in headless Chromium: it opens, planted markup stays text, and keys and buttons do what they say."""

import re
import shutil

import pytest
from page_plants import PLANT, plant_everywhere

from harness.report.page import write_report
from harness.report.simulate import Simulation, simulate

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def tab(browser):
    """A page whose errors and requests end up in `said`."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.said = []
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("request", lambda request: page.said.append(request.url) if request.url.startswith("http") else None)
    yield page
    context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated") / "run"
    return write_report([simulate(root, Simulation(instances=12, repeats=2, rates={"bf16": 0.7, "int4": 0.4}))])


def open_report(tab, path):
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")


def wait_for_both(tab):
    """Both tasks are decoded. By locators: a function to wait for would be eval, which the page's policy forbids."""
    for side in (1, 2):
        tab.locator(f".pane:nth-child({side}) .step").first.wait_for(state="attached")


def test_planted_markup_stays_text(tab, fake_store):
    root = fake_store(levels=["bf16", "int4"], instances=3)
    instance = plant_everywhere(root)
    open_report(tab, write_report([root]))
    tab.get_by_role("button", name=instance).first.click()
    wait_for_both(tab)
    tab.keyboard.press("o")
    assert tab.evaluate("window.planted") is None
    assert tab.locator("dialog script, dialog img").count() == 0
    assert tab.locator("dialog").inner_text().count(PLANT) >= 12
    assert tab.said == []


def test_opens_compares_and_moves_by_key(tab, report):
    open_report(tab, report)
    rows = tab.locator("#tasks tbody tr:not([hidden])")
    assert rows.count() == 12
    first, second = (rows.nth(n).locator("td").first.inner_text() for n in (0, 1))
    rows.first.locator("td:nth-child(5) button").first.press("Enter")
    wait_for_both(tab)
    assert tab.locator("#viewer-title").inner_text() == first
    selected = [tab.locator(".pane select").nth(n).locator("option:checked").inner_text() for n in (0, 1)]
    assert [text.split(",")[0] for text in selected] == ["bf16", "int4"]
    assert re.search(r"step 1: 2,400 prompt tokens, 0% cached", tab.locator(".step").first.inner_text())
    assert tab.locator(".pane .diff .add").count() > 0
    assert tab.locator(".observation[open]").count() == 0
    tab.keyboard.press("o")
    assert tab.locator(".observation:not([open])").count() == 0
    tab.keyboard.press("j")
    assert tab.locator("#viewer-title").inner_text() == second
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()
    assert tab.said == []


def test_failed_tests_are_marked_in_the_log(tab, report):
    open_report(tab, report)
    tab.locator("#tasks button.unresolved").first.click()
    wait_for_both(tab)
    assert "FAILED tests/test_issue.py::test_empty_label" in tab.locator(".log .fail").all_inner_texts()


def test_filters_and_sorts_by_keyboard(tab, report):
    open_report(tab, report)
    tab.keyboard.press("/")
    tab.keyboard.type("django")
    names = tab.locator("#tasks tbody tr:not([hidden]) td:first-child").all_inner_texts()
    assert names
    assert all("django" in name for name in names)
    assert tab.locator("#count").inner_text() == f"{len(names)} of 12 instances"
    heads = tab.locator("#tasks th")
    heads.nth(0).locator("button").press("Enter")
    heads.nth(0).locator("button").press("Enter")
    assert heads.nth(0).get_attribute("aria-sort") == "descending"
    sorted_names = tab.locator("#tasks tbody tr:not([hidden]) td:first-child").all_inner_texts()
    assert sorted_names == sorted(names, reverse=True)


def test_a_link_to_a_flip_opens_both_levels(tab, report):
    open_report(tab, report)
    link = tab.locator(".flips a").first
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    name = link.inner_text()
    link.click()
    wait_for_both(tab)
    assert tab.locator("#viewer-title").inner_text() == name


def test_colours_follow_the_system_and_the_button(tab, report):
    tab.emulate_media(color_scheme="dark")
    open_report(tab, report)
    colour = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(colour) == "rgb(23, 24, 26)"
    tab.locator("#theme").click()
    assert tab.evaluate(colour) == "rgb(255, 255, 255)"


def test_every_control_has_a_name(tab, report):
    open_report(tab, report)
    controls = "[...document.querySelectorAll('button, select, input')]"
    assert tab.evaluate(f"{controls}.every(one => one.ariaLabel || one.textContent.trim() || one.labels?.length)")
    assert tab.evaluate("[...document.images].every(one => one.alt)")
