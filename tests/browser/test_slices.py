"""A slice from filter to finding, and two estimators compared with each other, in Chromium."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.conftest import DemoRun


def save(page: Page, settle, name: str) -> None:
    page.get_by_role("button", name="Save as slice").click()
    box = page.get_by_role("textbox", name="Name of the slice")
    box.fill(name)
    box.press("Enter")
    page.get_by_role("button", name="Save", exact=True).click()
    settle(page, f"Saved as slice {name}")


def test_a_slice_is_saved_and_every_page_knows_it(
    own_server, own_home: Path, digits_run: DemoRun, page: Page, settle, screenshot
) -> None:
    shutil.copytree(digits_run.path, own_home / "sliced")
    for label in ("0", "3"):
        page.goto(f"{own_server.url}/Examples?run=sliced&group=stamped&label={label}")
        settle(page, "of 894 images")
        save(page, settle, f"stamped {label}s")
    page.goto(f"{own_server.url}/?run=sliced&measure=loss")
    settle(page, "Credit and blame")
    said = page.get_by_text(re.compile("on images in slice stamped 0s, but would be"))
    expect(said.first).to_contain_text("95 % interval")
    screenshot(page, "slices")
    page.get_by_role("combobox", name="Group", exact=True).click()
    page.get_by_role("option", name="slice: stamped 3s").click()
    settle(page, "of images in slice stamped 3s")
    page.get_by_role("link", name="Spurious features").click()
    settle(page, "Errors by class")
    page.get_by_role("combobox", name="Groups by").click()
    page.get_by_role("option", name="slice: stamped 3s").click()
    settle(page, re.compile("stamped 3s"))


def test_the_largest_disagreement_is_opened(server, page: Page, settle, screenshot) -> None:
    page.goto(f"{server.url}/Examples?run=digits&view=Comparison&compared-stage=shortcut")
    settle(page, "Largest disagreements")
    screenshot(page, "compare")
    page.get_by_test_id("stDataFrame").last.click(position={"x": 12, "y": 36 + 23})
    expect(page.get_by_role("heading", name="Answers")).to_be_visible()
    settle(page)
    assert re.search(r"example=(clean|stamped)-\d+", page.url)
