"""Taking a stage out in a real Chromium: preset, slider, flipped answers, targeted edit, saving.

How long a slider takes to answer is measured by tests/benchmarks/slider.py.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server
from tests.conftest import DemoRun

RUN = "removal"
LINK = f"/Remove_a_stage?run={RUN}&set=test"

METRIC = '[data-testid="stMetricValue"]'


@pytest.fixture(scope="module")
def server(own_server: Server, own_home: Path, digits_run: DemoRun) -> Server:
    """A server whose home has the digits demo, as the run ``RUN``."""
    shutil.copytree(digits_run.path, own_home / RUN)
    return own_server


def exact(page: Page) -> None:
    expect(page.get_by_text("exact: measured on the edited weights")).to_be_visible()


@pytest.mark.essential
def test_the_worst_stage_is_removed_and_what_follows_is_shown(
    server, page: Page, settle, screenshot, check_narrow
) -> None:
    page.goto(server.url + LINK)
    settle(page, "Nothing is taken out yet")
    screenshot(page, "removal-nothing")
    page.get_by_role("button", name="Remove the worst stage for stamped images").click()
    expect(page.get_by_role("heading", name="Flipped answers")).to_be_visible()
    exact(page)
    settle(page, "Save the edited model")
    assert "remove-1=100" in page.url
    figure = page.get_by_role("figure", name=re.compile("Accuracy by group.*stamped, edited: [89]"))
    expect(figure.first).to_be_attached()
    screenshot(page, "removal-worst")
    check_narrow(page, "removal")


@pytest.mark.essential
def test_a_slider_answers_and_the_exact_figures_follow(server, page: Page, settle) -> None:
    page.goto(server.url + LINK + "&remove-1=50&remove-2=5")
    settle(page, "Flipped answers")
    slider = page.get_by_role("slider", name="Strength of shortcut")
    for strength in (55, 60):
        before = page.locator(METRIC).first.inner_text()
        slider.press("ArrowRight")
        expect(page.locator(METRIC).first).not_to_have_text(before)
        exact(page)
        settle(page)
        assert f"remove-1={strength}" in page.url
        expect(page.locator(METRIC).first).not_to_contain_text("≈")


def test_a_targeted_edit_is_found_and_saved(
    server, own_home: Path, page: Page, settle, screenshot
) -> None:
    page.goto(server.url + LINK + "&remove-mode=Targeted")
    settle(page, "by taking out parts of")
    page.get_by_role("button", name="Find the smallest edit").click()
    expect(page.get_by_text("Found on the validation part")).to_be_visible()
    exact(page)
    page.get_by_text("Strength by layer", exact=True).click()
    settle(page, "Save the edited model")
    screenshot(page, "removal-targeted")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved in")).to_be_visible()
    assert (own_home / "edited" / "digits-without-shortcut" / "README.md").is_file()
