"""axe-core on every page, in light and dark: nothing serious or critical that is ours to mend."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import COLOURS, HEADINGS, violations

PAGES = {
    "welcome": ("/", "Which stage is to credit"),
    "overview": ("/?run=digits", "Credit and blame"),
    "overview-opened": (
        "/?run=digits&show-bars=true&show-stages=true&show-paths=true&show-numbers=true",
        "Click a dot to look at the images on its path",
    ),
    "shares": ("/?run=digits&credit=Share&measure=margin", "Only together"),
    "examples": ("/Examples?run=digits", "894 images"),
    "example": ("/Examples?run=digits&example=stamped-001", "Share of each stage"),
    "own-example": ("/Examples?run=digits&view=Own+example", "Upload"),
    "compare": ("/Examples?run=digits&view=Comparison", "Largest disagreements"),
    "group-gaps": ("/Spurious_features?run=digits", "Errors by class"),
    "removal": ("/Remove_a_stage?run=digits", "Nothing is taken out yet"),
    "trust": ("/Trust?run=digits", "Training noise"),
    "report": ("/Report?run=digits", "Report"),
}
NARROW_ELSEWHERE = ("overview", "removal", "trust", "report")
"""Pages of which another file of tests, or overview-opened, shows more in narrow windows."""


@pytest.mark.parametrize("name", PAGES)
def test_every_page_can_be_used_by_everybody(
    server, page: Page, settle, screenshot, check_narrow, name: str
) -> None:
    path, text = PAGES[name]
    page.goto(server.url + path)
    settle(page, text)
    headings = page.evaluate(HEADINGS)
    assert headings.count(1) == 1 and headings[0] == 1, headings
    assert all(after <= before + 1 for before, after in pairwise(headings)), headings
    assert violations(page) == [], "in light"
    page.emulate_media(color_scheme="dark")
    settle(page)
    assert violations(page, COLOURS) == [], "in dark"
    screenshot(page, f"page-{name}")
    if name not in NARROW_ELSEWHERE:
        check_narrow(page, name)


def test_axe_finds_what_is_wrong(server, page: Page, settle) -> None:
    page.goto(server.url)
    settle(page, "Which stage is to credit")
    page.evaluate(
        "document.querySelector('[data-testid=stMain]').insertAdjacentHTML('beforeend',"
        "'<p style=\"color:#aaa;background:#bbb\">pale on pale</p><button></button>')"
    )
    found = violations(page)
    assert any(each.startswith("color-contrast") for each in found)
    assert any(each.startswith("button-name") for each in found)


def _open_story(page: Page, settle) -> None:
    """As somebody does who sees the switchboard first, which tells the server when it is there."""
    expect(page.locator(".board .bar").first).to_be_attached()
    page.wait_for_load_state("networkidle")
    page.get_by_text("The story of this demo").click()
    settle(page)


def _follow(page: Page, link: str, to: str) -> None:
    """Click a link to another page, once more where nothing came of it.

    On a busy machine the server rarely loses a change of page to a rerun of the old one that was
    asked for just before; a person clicks again.
    """
    page.get_by_role("link", name=link).click()
    try:
        expect(page).to_have_url(re.compile(to), timeout=30_000)
    except AssertionError:
        page.get_by_role("link", name=link).click()
        expect(page).to_have_url(re.compile(to))


def test_the_story_of_the_demo_leads_into_the_pages(server, page: Page, settle) -> None:
    page.goto(f"{server.url}/?run=digits")
    settle(page, "The story of this demo, in four sentences")
    _open_story(page, settle)
    page.get_by_role("link", name="See which stamped images shortcut hurts").click()
    settle(page, "of 894 images")
    assert "side=blame" in page.url and "changed=true" in page.url
    for name, value in (("Stage", "shortcut"), ("Group", "stamped")):
        expect(page.get_by_role("combobox", name=name, exact=True)).to_have_value(value)
    # Anew: going back keeps the group that was chosen, and then this is no first look.
    page.goto(f"{server.url}/?run=digits")
    settle(page, "The story of this demo")
    _open_story(page, settle)
    _follow(page, "Take it out", "Remove_a_stage")
    settle(page, "exact: measured on the edited weights")
    expect(page.get_by_role("heading", name="Flipped answers")).to_be_visible()


def test_the_glossary_is_reached_by_keyboard_from_any_page(
    server, page: Page, settle, screenshot
) -> None:
    page.goto(f"{server.url}/Trust?run=digits")
    settle(page, "Training noise")
    page.get_by_role("button", name="Glossary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_text("counterfactual", exact=True)).to_be_visible()
    settle(page)
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
