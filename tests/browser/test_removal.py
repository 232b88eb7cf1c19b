"""Taking a stage out in a real Chromium: preset, slider, flipped answers, targeted edit, saving."""

from __future__ import annotations

import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import DemoRun

QUIET = {"STREAMLIT_SERVER_FILE_WATCHER_TYPE": "none"}
LINK = "/Remove_a_stage?run=digits&set=test"

BUSY = os.getloadavg()[0] > (os.cpu_count() or 1)

ANSWERED = """async slider => {
    const answer = () => [...document.querySelectorAll('[data-testid="stMetricValue"]')]
        .map(each => each.innerText).join();
    const before = answer();
    const began = performance.now();
    slider.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    while (answer() === before && performance.now() - began < 10000)
        await new Promise(done => setTimeout(done, 4));
    return performance.now() - began;
}"""
"""Milliseconds from a press on a slider until other figures are shown."""


@pytest.fixture(scope="module")
def home(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("removal")
    shutil.copytree(digits_run.path, folder / "digits")
    return folder


@pytest.fixture(scope="module")
def server(start_server, home: Path):
    """A server whose home has the digits demo."""
    return start_server({**QUIET, "STAGELENS_HOME": str(home)})


def exact(page: Page) -> None:
    expect(page.get_by_text("Exact: measured on the edited weights")).to_be_visible()


def test_the_worst_stage_is_removed_and_what_follows_is_shown(
    server, page: Page, settle, screenshot
) -> None:
    page.goto(server.url + LINK)
    settle(page, "Nothing is taken out yet")
    screenshot(page, "removal-nothing")
    page.get_by_role("button", name="Remove the worst stage for this group").click()
    expect(page.get_by_role("heading", name="Flipped answers")).to_be_visible()
    exact(page)
    settle(page, "Save the edited model")
    assert "remove-1=100" in page.url
    figure = page.get_by_role("figure", name=re.compile("Accuracy by group.*stamped, edited: [89]"))
    expect(figure.first).to_be_attached()
    screenshot(page, "removal-worst")


@pytest.mark.skipif(BUSY, reason="more work is waiting than there are cores; nothing is timed")
def test_a_slider_answers_at_once_and_exactly_thereafter(server, page: Page, settle) -> None:
    page.goto(server.url + LINK + "&remove-1=50")
    settle(page, "Flipped answers")
    slider = page.get_by_role("slider", name="Strength of shortcut")
    times = []
    for _ in range(8):
        slider.focus()
        times.append(slider.evaluate(ANSWERED))
        exact(page)
        settle(page)
    print(f"slider to figures: median {statistics.median(times):.0f} ms of {times}")
    assert statistics.median(times) < 300


def test_a_targeted_edit_is_found_and_saved(
    server, home: Path, page: Page, settle, screenshot
) -> None:
    page.goto(server.url + LINK + "&remove-mode=Targeted")
    settle(page, "by taking out parts of")
    page.get_by_role("button", name="Find the smallest edit").click()
    expect(page.get_by_text("Found on the validation part")).to_be_visible(timeout=90_000)
    exact(page)
    page.get_by_text("Strength by layer").click()
    settle(page, "Save the edited model")
    screenshot(page, "removal-targeted")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved in")).to_be_visible(timeout=90_000)
    assert (home / "edited" / "digits-without-shortcut" / "README.md").is_file()


@pytest.mark.parametrize("width", [420])
def test_a_narrow_window_is_usable(server, page: Page, settle, screenshot, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 1200})
    page.goto(server.url + LINK + "&remove-1=100")
    settle(page, "Save the edited model")
    overflow = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 1
    screenshot(page, f"narrow-{width}-removal")
