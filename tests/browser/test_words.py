"""Typing in a real Chromium: every model answers, unknown words are told, keys suffice."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.axe import violations

OWN = "/Examples?run=comments&view=Own+example&measure=margin"
FIGURES = "[...document.querySelectorAll('[role=figure]')].map(one => one.innerHTML)"
CHANGED = f"before => {FIGURES}.length > 0 && {FIGURES}.every(one => one !== before)"


def bars(page: Page) -> str:
    """The bars of all stages, as markup."""
    return str(page.get_by_role("figure", name=re.compile("Effect of each")).first.inner_html())


def test_typing_changes_the_bars_and_words_are_changed_by_keys(
    start_server, page: Page, settle, screenshot, check_narrow, text_runs: Path
) -> None:
    server = start_server({"STAGELENS_HOME": str(text_runs)})
    page.goto(server.url + OWN)
    settle(page, "answer at once")
    text = page.get_by_role("textbox", name="A text of your own")
    text.click()
    page.keyboard.type("birds sing")
    expect(page.get_by_role("heading", name=re.compile("^The final model answers"))).to_be_visible()
    settle(page)
    known = bars(page)
    # Nothing but a key: no button is pressed, and the field keeps the focus.
    page.keyboard.type(" xylophage")
    page.wait_for_function(CHANGED, arg=known)
    expect(text).to_be_focused()
    told = page.locator(".pen .which")
    expect(told).to_have_text(re.compile("^“xylophage”: unknown to the tokenizer"))
    expect(page.locator(".pen .back .unknown")).to_have_text(["xylophage"])
    expect(page.get_by_text("unknown to the tokenizer, so all alike to the model")).to_be_visible()
    settle(page)
    screenshot(page, "words")
    check_narrow(page, "words")
    assert violations(page) == []
    # By keys alone: the word at the cursor is swapped, taken out, and had back.
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Remove word")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("cats")
    page.keyboard.press("Enter")
    expect(text).to_have_value("birds sing cats")
    page.get_by_role("button", name="Remove word").press("Enter")
    expect(text).to_have_value("birds sing")
    page.wait_for_function(f"known => {FIGURES}.some(one => one === known)", arg=known)
    text.press("Control+z")
    expect(text).to_have_value("birds sing cats")
    page.get_by_role("button", name="Any example").click()
    expect(text).not_to_have_value("birds sing cats")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
