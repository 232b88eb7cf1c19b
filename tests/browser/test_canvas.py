"""Drawing in a real Chromium: by mouse and by keys, and every model answers."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

OWN = "/Examples?run=digits&view=Own+example"
FIGURES = "[...document.querySelectorAll('[role=figure]')].map(one => one.innerHTML)"
ANSWER = re.compile("^The final model answers")


def bars(page: Page) -> str:
    """The bars of all stages, as markup."""
    return str(page.get_by_role("figure", name=re.compile("Effect of each")).first.inner_html())


def stroke(page: Page, *cells: tuple[int, int]) -> None:
    box = page.get_by_role("application", name="Drawing of 8 by 8 cells").bounding_box()
    assert box is not None
    for place, (x, y) in enumerate(cells):
        page.mouse.move(
            box["x"] + box["width"] * (x + 0.5) / 8, box["y"] + box["height"] * (y + 0.5) / 8
        )
        if not place:
            page.mouse.down()
    page.mouse.up()


def test_a_stroke_changes_the_answers(server, page: Page, settle, screenshot, check_narrow) -> None:
    page.goto(server.url + OWN)
    settle(page, "answer at once")
    stroke(page, (2, 1), (5, 1), (4, 3), (3, 6))
    expect(page.get_by_role("heading", name=ANSWER)).to_be_visible()
    settle(page)
    before = bars(page)
    page.get_by_role("button", name="Stamp the top left corner").click()
    page.wait_for_function(f"before => {FIGURES}.every(one => one !== before)", arg=before)
    settle(page)
    screenshot(page, "canvas")
    check_narrow(page, "canvas")
    # Undone, everything is as it was: what the server sends meanwhile has drawn nothing anew.
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function(f"before => {FIGURES}.some(one => one === before)", arg=before)


def test_keys_paint_and_an_example_is_drawn_on(server, page: Page, settle) -> None:
    page.goto(server.url + OWN)
    settle(page, "answer at once")
    sheet = page.get_by_role("application", name="Drawing of 8 by 8 cells")
    sheet.focus()
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    expect(page.locator(".pad .told")).to_have_text("row 2, column 2 painted")
    expect(page.get_by_role("heading", name=ANSWER)).to_be_visible()
    settle(page)
    expect(sheet).to_be_focused()
    field = page.get_by_role("textbox", name="Example to start from")
    field.fill("<b>nobody</b>")
    field.press("Enter")
    settle(page, "The set has no example of this name.")
    field.fill("clean-003")
    field.press("Enter")
    settle(page, "clean-003, as it is in the file.")
