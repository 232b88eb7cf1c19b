"""An example of one's own, asked in a real Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

OWN = "/Examples?run=digits&view=Own+example"


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """A seven as somebody might draw it, of the wrong size, shape and colours."""
    image = Image.new("RGB", (300, 400), "black")
    strokes = [(90, 120), (200, 120), (120, 300)]
    ImageDraw.Draw(image).line(strokes, fill="white", width=36)
    image.save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def upload(page: Page, file: Path) -> None:
    page.get_by_test_id("stFileUploader").locator("input").set_input_files(file)


def test_an_uploaded_image_is_answered_by_every_model(
    server, page: Page, settle, screenshot, check_narrow, seven: Path
) -> None:
    page.goto(f"{server.url}/Examples?run=digits")
    settle(page, "894 images")
    page.get_by_role("tab", name="Own example").click()
    settle(page, "answer at once")
    assert "view=Own+example" in page.url
    upload(page, seven)
    settle(page, "The final model answers")
    expect(page.get_by_text("scaled from 300 × 300 to 8 × 8 pixels")).to_be_visible()
    expect(page.get_by_role("application", name="Drawing of 8 by 8 cells")).to_be_visible()
    for stage in ("pretrain", "shortcut", "mislabelled", "adapt"):
        said = page.get_by_text(re.compile(f"Without {stage}, the margin would be"))
        expect(said).to_be_visible()
        expect(page.get_by_text(f"{stage}: exact").first).to_be_visible()
    bars = page.get_by_role("figure", name=re.compile("Effect of each stage on this example"))
    expect(bars.first).to_be_attached()
    screenshot(page, "own-image")
    check_narrow(page, "own-image")
    page.get_by_role("combobox", name="Label", exact=True).click()
    page.get_by_role("option", name="7", exact=True).click()
    expect(page.get_by_text(re.compile("✓ right|✗ wrong")).first).to_be_visible()
    expect(page.get_by_text("No label was chosen")).to_have_count(0)


def test_a_wrong_file_is_refused_and_the_next_one_answered(
    server, page: Page, settle, seven: Path, tmp_path: Path
) -> None:
    page.goto(server.url + OWN)
    settle(page, "answer at once")
    wrong = tmp_path / "wrong.png"
    wrong.write_text("<svg onload=alert(1)>")
    upload(page, wrong)
    settle(page, "not an image of a kind that can be read")
    upload(page, seven)
    settle(page, "The final model answers")
