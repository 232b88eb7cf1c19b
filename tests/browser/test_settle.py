"""What a page shows after ``settle`` is the answer to what was done last."""

from __future__ import annotations

from playwright.sync_api import Page


def test_what_was_asked_for_has_been_answered(start_server, page: Page, settle) -> None:
    server = start_server(script="tests/support/late_script.py")
    slider, words = page.get_by_role("slider"), page.get_by_role("textbox")

    def shown() -> str:
        settle(page)
        return page.get_by_test_id("stMain").inner_text()

    page.goto(server.url)
    assert "number 3, pressed False" in shown()
    slider.press("ArrowRight")  # which is sent a moment later
    assert "number 4, pressed False" in shown()
    page.get_by_role("button", name="Press").click()
    assert "number 4, pressed True" in shown()
    page.get_by_text("Tick", exact=True).click()  # a fragment alone
    assert "ticked True" in shown()
    words.fill("one")
    words.press("Enter")
    assert "pressed False, words one" in shown()
    words.fill("two")
    page.get_by_role("button", name="Press").click()  # two runs are asked for at once
    assert "pressed True, words two" in shown()
    for _ in range(3):
        slider.press("ArrowRight")
    assert "number 7, pressed False" in shown()
