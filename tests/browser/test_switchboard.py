"""The switchboard as a person meets it: switched by pointer and by keys, and kept in links."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.turning import LEAVE, TURNED


def number(page: Page) -> float:
    return float(page.locator(".board .number").inner_text().removesuffix(" %"))


def wrong(page: Page) -> Locator:
    return page.locator(".board .card.wrong")


@pytest.mark.essential
def test_a_stage_is_switched_off_and_the_wall_turns(
    server, page: Page, settle, screenshot, check_narrow
) -> None:
    page.emulate_media(reduced_motion="no-preference")  # the number counts, and bars grow
    page.goto(f"{server.url}/?run=digits")
    shortcut = page.get_by_role("switch", name=re.compile("^shortcut"))
    expect(shortcut).to_be_checked()
    expect(page.locator(".board .about")).to_have_text("Accuracy on stamped images")
    settle(page)
    before, at_first = number(page), wrong(page).count()
    told = page.locator(".board .number").inner_text()
    assert at_first == pytest.approx(60 * (1 - before / 100), abs=3)
    shortcut.click()
    expect(shortcut).not_to_be_checked()
    expect(page.locator(".board .said")).to_contain_text("Without shortcut, accuracy would be")
    page.wait_for_url(re.compile(r"[?&]off=shortcut\b"))
    settle(page)
    # The number counts to its end, whatever the server sends meanwhile.
    end = str(page.locator(".board .told").inner_text()).partition(" %.")[0]
    expect(page.locator(".board .number")).to_have_text(f"{end} %")
    after = number(page)
    assert after > before + 10 and wrong(page).count() < at_first
    assert wrong(page).count() == pytest.approx(60 * (1 - after / 100), abs=4)
    screenshot(page, "switchboard")
    check_narrow(page, "switchboard")
    # On again: everything is as it was, and the link says nothing.
    shortcut.click()
    page.wait_for_url(re.compile(r"^(?!.*off=)"))
    expect(page.locator(".board .number")).to_have_text(told)
    assert wrong(page).count() == at_first


def test_keys_switch_and_go_from_card_to_card_and_a_link_holds_what_is_off(
    server, page: Page, settle
) -> None:
    page.goto(f"{server.url}/?run=digits&off=shortcut,adapt")
    settle(page)
    for name, on in (("pretrain", True), ("shortcut", False), ("adapt", False)):
        expect(page.get_by_role("switch", name=re.compile(f"^{name}"))).to_be_checked(checked=on)
    expect(page.locator(".board .said")).to_contain_text("Without shortcut and adapt")
    adapt = page.get_by_role("switch", name=re.compile("^adapt"))
    adapt.focus()
    page.keyboard.press("Space")
    expect(adapt).to_be_checked()
    page.wait_for_url(re.compile(r"off=shortcut(&|$)"))
    settle(page)
    expect(adapt).to_be_focused()  # what the server sent meanwhile has drawn nothing anew
    first, second = (page.locator(".board .card").nth(place) for place in (0, 1))
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(second).to_be_focused()
    named = str(second.get_attribute("href")).rpartition("example=")[2].partition("&")[0]
    page.evaluate(LEAVE)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"/Examples.*example={named}"))
    settle(page)
    assert page.evaluate(TURNED)


def test_all_examples_are_one_click_away(server, page: Page, settle) -> None:
    page.goto(f"{server.url}/?run=digits")
    page.get_by_role("button", name="all images", exact=True).click()
    expect(page.locator(".board .about")).to_have_text("Accuracy on all images")
    expect(page.locator(".board .sampled")).to_contain_text("60 of 894 images")
    page.wait_for_url(re.compile("wall=all"))
    settle(page)
    page.get_by_role("button", name="stamped images", exact=True).click()
    expect(page.locator(".board .about")).to_have_text("Accuracy on stamped images")
